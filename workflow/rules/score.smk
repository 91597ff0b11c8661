localrules:
    scores,
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
        "python -m dklfm score {params.settings:q} {params.folders:q} {output:q} 2> {log:q}"


rule scores:
    input:
        [f"{product(evaluation.scores)}.csv" for evaluation in PLAN.evaluations],
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
        "python -m dklfm summarise {output:q} {input:q} 2> {log:q}"


rule index:
    output:
        f"{RESULTS}/index.json",
    log:
        f"{RESULTS}/logs/index.log",
    params:
        index=canonical_json(PLAN.index()),
    shell:
        "echo {params.index:q} > {output:q} 2> {log:q}"
