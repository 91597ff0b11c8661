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
            category="1 Methods compared",
            caption="../report/scores.rst",
            labels={"table": "every score of every experiment, seed and split (CSV)"},
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
        markdown=f"{RESULTS}/table1.md",
        html=report(
            f"{RESULTS}/table1.html",
            category="1 Methods compared",
            caption="../report/table.rst",
            labels={"table": "Table 1: every method on the same tasks"},
        ),
    log:
        f"{RESULTS}/logs/table.log",
    params:
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
    shell:
        "python -m dklfm stage table {input:q} {params.stem:q} 2> {log:q}"


rule index:
    output:
        index=f"{RESULTS}/index.json",
        settings=report(
            f"{RESULTS}/settings.html",
            category="7 Settings",
            caption="../report/settings.rst",
            labels={"settings": "the config, with every default"},
        ),
    log:
        f"{RESULTS}/logs/index.log",
    params:
        index=canonical_json(PLAN.index()),
        settings=f"<pre>{html.escape(yaml.safe_dump(SETTINGS, sort_keys=False))}</pre>",
    shell:
        "echo {params.index:q} > {output.index:q} 2> {log:q}"
        " && echo {params.settings:q} > {output.settings:q} 2>> {log:q}"
