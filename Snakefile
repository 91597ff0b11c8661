include: "workflow/Snakefile"


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.scores.output,
        rules.table.output,
        rules.index.output,
        figures(),
