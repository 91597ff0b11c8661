rule fit:
    input:
        manifests("fit"),
    output:
        f"{RESULTS}/fit/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/fit/{{name}}.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=settings("fit"),
        tasks=lambda wildcards: product(STAGES["fit"][wildcards.name].parents[0]),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m dklfm stage fit {params.settings:q} {params.tasks:q} {params.folder:q} 2> {log:q}"


rule simulate:
    input:
        manifests("tasks"),
    output:
        store=directory(f"{RESULTS}/tasks/{{name}}/data.zarr"),
        manifest=f"{RESULTS}/tasks/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/simulate/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/simulate/{{name}}.tsv"
    wildcard_constraints:
        name=names("tasks", lambda stage: "system" in stage.spec),
    # First of all: a job of several threads could wait for all trainings to end.
    priority: 10
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=settings("tasks"),
        folder=subpath(output.manifest, parent=True),
        fitted=lambda wildcards: [
            f"--fitted {product(p)}" for p in STAGES["tasks"][wildcards.name].parents
        ],
    shell:
        "python -m dklfm simulate {params.settings:q} {params.folder:q} {params.fitted}"
        " --workers {threads} 2> {log:q}"


rule measurements:
    output:
        store=directory(f"{RESULTS}/tasks/{{name}}/data.zarr"),
        manifest=f"{RESULTS}/tasks/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/measurements/{{name}}.log",
    wildcard_constraints:
        name=names("tasks", lambda stage: "dataset" in stage.spec),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        dataset=lambda wildcards: STAGES["tasks"][wildcards.name].spec["dataset"],
        folder=subpath(output.manifest, parent=True),
    shell:
        "python -m dklfm stage measurements {params.dataset:q} {params.folder:q} 2> {log:q}"
