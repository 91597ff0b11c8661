"""Settings of the documentation, which Sphinx builds."""

project = "dklfm"
author = "The dklfm developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "dklfm"
exclude_patterns = ["_build"]
# Links to files of the checkout, which are no pages.
suppress_warnings = ["myst.xref_missing"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
