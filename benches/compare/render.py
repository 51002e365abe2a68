"""Results to a Markdown table, the list of goals with what was reached, and a plot."""
import statistics
from html import escape

FIGURE = {"cpu": ("proxy CPU, us per {unit}", "cpu"), "p50": ("median latency, us", "p50_us"),
          "p99": ("99th percentile, us", "p99_us")}
# workload, proxy, factor, reference: the median of the proxy is to be at most factor x that of the reference.
GOALS = [
    ("h1", "agent", 1.0, "haproxy"), ("h1", "agent", 1.0, "nginx"), ("h1", "agent", 0.35, "envoy"),
    ("h1", "agent", 1.2, "floor"), ("h1", "agent-rule", 1.05, "agent"), ("one", "agent", 1.0, "nginx"), ("rate", "agent", 1.0, "haproxy"),
    ("new", "agent", 1.0, "nginx"), ("tls", "agent", 1.0, "nginx"), ("handshake", "agent", 1.0, "envoy"),
    ("h2c", "agent", 0.2, "envoy"), ("grpc", "agent", 0.2, "envoy"), ("h2c", "agent-rule", 0.6, "envoy"),
    ("grpc", "agent-rule", 0.6, "envoy"), ("h2c", "agent-rule", 1.0, "haproxy"),
    ("grpc", "agent-rule", 1.0, "haproxy"),
    ("up1", "agent", 1.0, "haproxy-splice"), ("up8", "agent", 1.0, "haproxy-splice"),
    ("down1", "agent", 1.0, "haproxy-splice"), ("down8", "agent", 1.0, "haproxy-splice"),
    ("get1m", "agent", 1.0, "haproxy-big"), ("post1m", "agent", 1.0, "haproxy-big"),
]


def figure_name(workload):
    title, key = FIGURE[workload[3]]
    if workload[2] == "GiB":
        title = "proxy CPU, ms per GiB"
    return title.format(unit=workload[2]), key


def medians(results, workloads):
    """{(workload, proxy): median of the figure that counts}"""
    values = {}
    for r in results:
        values.setdefault((r["workload"], r["proxy"]), []).append(r.get(figure_name(workloads[r["workload"]])[1], 0))
    return {key: statistics.median(v) for key, v in values.items()}


def paired_ratio(results, workloads, workload, proxy, reference):
    """The median over rounds of the ratio within a round: what both had to suffer cancels out."""
    key = figure_name(workloads[workload])[1]
    of = {(r["round"], r["proxy"]): r.get(key, 0) for r in results if r["workload"] == workload}
    ratios = [value / of[(n, reference)] for (n, p), value in of.items() if p == proxy and of.get((n, reference))]
    return statistics.median(ratios) if ratios else None


def markdown(results, workloads, proxies):
    found = medians(results, workloads)
    columns = [p for p in proxies if any(key[1] == p for key in found)]
    lines = ["| load | figure | " + " | ".join(proxies[c] for c in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, workload in workloads.items():
        row = [found.get((name, c)) for c in columns]
        if any(v is not None for v in row):
            cells = ["–" if v is None else f"{v:.1f}" for v in row]
            lines.append(f"| {workload[0]} | {figure_name(workload)[0]} | " + " | ".join(cells) + " |")
    lines += ["", "| goal | at most | reached | |", "|---|---|---|---|"]
    for name, proxy, factor, reference in GOALS:
        ratio = paired_ratio(results, workloads, name, proxy, reference)
        if ratio is not None:
            lines.append(f"| {workloads[name][0]}: {proxies[proxy]} / {proxies[reference]} | {factor:.2f} | {ratio:.2f} "
                         f"| {'reached' if ratio <= factor else '**missed**'} |")
    errors = sum(r["errors"] for r in results)
    lines += ["", f"Medians over {1 + max((r['round'] for r in results), default=-1)} alternating rounds; ratios are "
                  f"medians of the ratios within a round. Failed requests in all runs: {errors}."]
    return "\n".join(lines) + "\n"


COLOURS = ["#8c6bb1", "#41ab5d", "#a1d99b", "#74c476", "#2171b5", "#6baed6", "#bdbdbd", "#d94801", "#f16913", "#fdae6b"]


def svg(results, workloads, proxies):
    """Bars relative to the slowest proxy of each load, so that loads of all sizes share one axis."""
    found = medians(results, workloads)
    columns = [p for p in proxies if any(key[1] == p for key in found)]
    rows, y = [], 70
    for name, workload in workloads.items():
        values = {c: found[(name, c)] for c in columns if (name, c) in found}
        if not values:
            continue
        most = max(values.values()) or 1
        rows.append(f'<text x="10" y="{y}" class="t">{escape(workload[0])} '
                    f'<tspan class="s">({escape(figure_name(workload)[0])})</tspan></text>')
        y += 8
        for column, value in values.items():
            width = 420 * value / most
            rows.append(f'<rect x="230" y="{y}" width="{width:.1f}" height="11" '
                        f'fill="{COLOURS[list(proxies).index(column)]}"/>'
                        f'<text x="224" y="{y + 9}" class="s" text-anchor="end">{escape(proxies[column])}</text>'
                        f'<text x="{236 + width:.1f}" y="{y + 9}" class="s">{value:.1f}</text>')
            y += 14
        y += 26
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y}" font-family="sans-serif">'
            '<style>.t{font-size:13px;font-weight:bold}.s{font-size:10px;font-weight:normal;fill:#333}</style>'
            '<rect width="100%" height="100%" fill="white"/>'
            '<text x="10" y="28" font-size="16">What a proxy costs (less is better)</text>' + "".join(rows) + "</svg>\n")
