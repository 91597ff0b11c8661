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
    shell:
        "python -m dklfm infer {params.model:q} {params.tasks:q} {params.folder:q}"
        " --device {params.device} 2> {log:q}"
