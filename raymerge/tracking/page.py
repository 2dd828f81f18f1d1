"""The Jinja template of the report's page. Values are escaped; it has no scripts and loads nothing."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>raymerge report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
td small { color: #666; display: block; }
.best { font-weight: 700; background: #e3f4ec; }
.verdict { background: #f2f5f9; border-left: 4px solid #0072b2; padding: .6rem 1rem; }
.verdict p { margin: .2rem 0; }
img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
{% macro listing(values) %}
<dl>
{% for key, value in values.items() %}
<dt>{{ key | replace("_", " ") }}</dt><dd>{% if value is mapping %}{{ value | tojson }}{% else %}{{ value }}{% endif %}</dd>
{% endfor %}
</dl>
{% endmacro %}
<h1>raymerge report</h1>
<p>{{ title }}</p>
<div class="verdict">
{% for line in verdict %}
<p>{{ line }}</p>
{% endfor %}
</div>
{% for ranking, metrics in rankings.items() %}
<h2>Models, {{ ranking }} ranking</h2>
<div class="scroll"><table>
<caption>Mean over users with its bootstrap interval; * marks the best of each column, not counting ensembles.</caption>
<thead><tr><th scope="col">model</th><th scope="col">kind</th>
{% for metric in metrics %}
<th scope="col">{{ metric | upper }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in report.rows %}
<tr><td>{{ row.name }}</td><td>{{ row.kind }}</td>
{% for metric in metrics %}
{% set value = row.metrics[ranking][metric] %}
{% set is_best = row.name in best[(ranking, metric)] %}
<td{% if is_best %} class="best"{% endif %}>{{ "%.4f" | format(value.mean) }}{% if is_best %}*{% endif %}
<small>{{ "%.4f" | format(value.low) }} to {{ "%.4f" | format(value.high) }}</small></td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% if report.comparisons %}
<h2>Comparisons</h2>
<div class="scroll"><table>
<caption>Candidate minus reference on the same users (paired bootstrap); p (Holm) is corrected over all rows.</caption>
<thead><tr><th scope="col">candidate</th><th scope="col">reference</th><th scope="col">metric</th>
<th scope="col">difference</th><th scope="col">relative</th><th scope="col">interval</th>
<th scope="col">p</th><th scope="col">p (Holm)</th></tr></thead>
<tbody>
{% for one in report.comparisons %}
<tr><td>{{ one.candidate }}</td><td>{{ one.reference }}</td><td>{{ one.metric | upper }}</td>
<td>{{ "%+.4f" | format(one.difference) }}</td>
<td>{% if one.relative is not none %}{{ "%+.1f" | format(100 * one.relative) }} %{% endif %}</td>
<td>{{ "%+.4f" | format(one.low) }} to {{ "%+.4f" | format(one.high) }}</td>
<td>{{ "%.3g" | format(one.p) }}</td><td>{{ "%.3g" | format(one.p_holm) }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if report.overlap is defined %}
<h2>Users by the members that hit them</h2>
<div class="scroll"><table>
<caption>How many users are hit (their item is among the first
{{ report.overlap.k }} of the {{ report.overlap.ranking }} ranking) by no member, by only one, by
several or by all, and how many of each group the other models hit.</caption>
<thead><tr><th scope="col">members</th><th scope="col">users</th>
{% for model in report.overlap.groups[0].hits %}
<th scope="col">{{ model }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for group in report.overlap.groups %}
<tr><td>{{ group.members }}</td><td>{{ "{:,}".format(group.users) }}</td>
{% for count in group.hits.values() %}
<td>{{ "{:,}".format(count) }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% for caption, png in plots.items() %}
<h2>{{ caption }}</h2>
<img alt="{{ caption }}" src="data:image/png;base64,{{ png }}">
{% endfor %}
<h2>Merge</h2>
{{ listing(report.merge) }}
<h2>Protocol</h2>
{{ listing(report.protocol) }}
<h2>Data</h2>
{{ listing(report.data) }}
<h2>Artifacts</h2>
{{ listing(report.artifacts) }}
<h2>Seconds by model</h2>
{{ listing(report.timings) }}
<h2>Versions</h2>
{{ listing(report.versions) }}
</body>
</html>
"""
