rule infer:
    input:
        manifests("posterior"),
    output:
        store=directory(f"{RESULTS}/posterior/{{name}}/data.zarr"),
        manifest=f"{RESULTS}/posterior/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/infer/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/infer/{{name}}.tsv"
    wildcard_constraints:
        name=names("posterior", lambda stage: len(stage.parents) == 2),
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=0 if CONFIG.device == "cpu" else 1,
    params:
        model=lambda wildcards: product(STAGES["posterior"][wildcards.name].parents[0]),
        tasks=lambda wildcards: product(STAGES["posterior"][wildcards.name].parents[1]),
        folder=subpath(output.manifest, parent=True),
        device=CONFIG.device,
        refine=refinement,
    shell:
        "python -m dklfm stage infer {params.model:q} {params.tasks:q} {params.folder:q}"
        " --device {params.device} {params.refine:q} 2> {log:q}"


rule reference:
    input:
        manifests("posterior"),
    output:
        store=directory(f"{RESULTS}/posterior/{{name}}/data.zarr"),
        manifest=f"{RESULTS}/posterior/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/reference/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/reference/{{name}}.tsv"
    wildcard_constraints:
        name=names("posterior", lambda stage: len(stage.parents) == 1),
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        method=lambda wildcards: canonical_json(
            STAGES["posterior"][wildcards.name].spec["reference"]
        ),
        tasks=lambda wildcards: product(STAGES["posterior"][wildcards.name].parents[0]),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python -m dklfm stage reference {params.method:q} {params.tasks:q} {params.folder:q} 2> {log:q}"
