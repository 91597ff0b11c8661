localrules:
    scores,
    table,
    index,


rule score:
    input:
        whole(scored),
    output:
        f"{RESULTS}/scores/{{name}}.csv",
    log:
        f"{RESULTS}/logs/score/{{name}}.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=settings("scores"),
        folders=scored,
    shell:
        "python -m dklfm stage score {params.settings:q} {params.folders:q} {output:q} 2> {log:q}"


rule scores:
    input:
        [product(evaluation.scores) for evaluation in PLAN.evaluations],
    output:
        report(
            f"{RESULTS}/scores.csv",
            category="Tables",
            caption="../report/scores.rst",
            labels={"table": "scores of every experiment"},
        ),
    log:
        f"{RESULTS}/logs/scores.log",
    shell:
        "python -m dklfm stage summarise {output:q} {input:q} 2> {log:q}"


rule table:
    input:
        f"{RESULTS}/scores.csv",
    output:
        csv=f"{RESULTS}/table1.csv",
        tex=f"{RESULTS}/table1.tex",
        markdown=report(
            f"{RESULTS}/table1.md",
            category="Tables",
            caption="../report/table.rst",
            labels={"table": "Table 1: methods compared"},
        ),
    log:
        f"{RESULTS}/logs/table.log",
    params:
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
    shell:
        "python -m dklfm stage table {input:q} {params.stem:q} 2> {log:q}"


rule index:
    output:
        f"{RESULTS}/index.json",
    log:
        f"{RESULTS}/logs/index.log",
    params:
        index=canonical_json(PLAN.index()),
    shell:
        "echo {params.index:q} > {output:q} 2> {log:q}"
