rule train:
    input:
        tasks=manifests("model"),
    output:
        weights=f"{RESULTS}/model/{{name}}/weights.safetensors",
        history=f"{RESULTS}/model/{{name}}/history.csv",
        manifest=f"{RESULTS}/model/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/train/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{name}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=0 if CONFIG.device == "cpu" else 1,
    params:
        settings=settings("model"),
        tasks=lambda wildcards: product(STAGES["model"][wildcards.name].parents[0]),
        folder=subpath(output.manifest, parent=True),
        device=CONFIG.device,
    shell:
        "python -m dklfm train {params.settings:q} {params.tasks:q} {params.folder:q}"
        " --device {params.device} 2> {log:q}"
