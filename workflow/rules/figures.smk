localrules:
    figure,


rule figure:
    input:
        whole(drawn),
    output:
        pdf=f"{RESULTS}/figures/{{name}}.pdf",
        png=report(
            f"{RESULTS}/figures/{{name}}.png",
            category=category,
            caption="../report/figure.rst",
            labels=lambda wildcards: {
                "figure": wildcards.name.rpartition("-")[0].replace("_", " ")
            },
        ),
    log:
        f"{RESULTS}/logs/figures/{{name}}.log",
    params:
        kind=lambda wildcards: STAGES["figure"][wildcards.name].spec["figure"],
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
        folders=drawn,
    shell:
        "python -m dklfm stage figure {params.kind} {params.stem:q} {params.folders:q} 2> {log:q}"
