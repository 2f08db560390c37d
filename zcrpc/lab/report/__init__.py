"""The report: one page, without anything outside it, from results files of the laboratory.

`reading` turns files into rows with types and names what cannot be used; `figures` makes medians with their spread;
`plots` draws; `live`, `benches`, `model` and `kernels` have a section for each question that the results can answer;
`page` puts them together. It needs matplotlib and Jinja2: `pip install 'zcrpc[report]'`.
"""
