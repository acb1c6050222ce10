#!/usr/bin/env python3
"""usage: draw_figure9.py FIRN TRACES OUT.svg: the hit rates of Mooncake's Figure 9 (FAST'25) beside ours.

FIRN is the program, TRACES the folder with mooncake-fast25/. Prints the table of docs/simulate.md and draws the curves:
lines are LRU of `firn simulate --bookkeeping`, in tokens; dots are read off the paper's drawing.
"""
import json
import math
import subprocess
import sys

PAPER = {  # tokens of capacity: hit rate, by tokens
    "conversation": {1e4: .0449, 1e5: .0731, 1e6: .0866, 2e6: .1202, 4e6: .2149, 5e6: .2471, 8e6: .2997, 1e7: .3263,
                     5e7: .3983},
    "synthetic": {1e4: .0003, 1e5: .0117, 1e6: .1461, 2e6: .2345, 4e6: .3805, 5e6: .4352, 8e6: .5447, 1e7: .5886,
                  5e7: .6582},
}
MORE = [2e4, 5e4, 2e5, 5e5, 1.5e6, 3e6, 6e6, 1.5e7, 2e7, 3e7]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 380, 56, 44, 16


def ours(firn, trace, capacities):
    blocks = [max(1, round(tokens / 512)) for tokens in capacities]
    out = subprocess.run([firn, "simulate", "--bookkeeping", "--trace", trace, "--policy", "lru", "--sweep",
                          "capacity-blocks=" + ",".join(map(str, blocks)), "--json", "-"],
                         capture_output=True, check=True).stdout
    return [row["report"]["token_ratio"] for row in json.loads(out)["sweep"]]


def x_of(tokens):
    return LEFT + (math.log10(tokens) - 4) / (math.log10(6e7) - 4) * (WIDTH - LEFT - 16)


def y_of(ratio):
    return HEIGHT - BOTTOM - ratio / 0.7 * (HEIGHT - BOTTOM - TOP)


def main():
    firn, traces, out = sys.argv[1:4]
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
           'font-size="12"><rect width="100%" height="100%" fill="#fff"/>']
    for i in range(8):
        y = y_of(i / 10)
        svg.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 16}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{10 * i} %</text>')
    for tokens, name in ((1e4, "10 k"), (1e5, "100 k"), (1e6, "1 M"), (1e7, "10 M"), (5e7, "50 M")):
        svg.append(f'<text x="{x_of(tokens):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{name}</text>')
    svg.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle" fill="#555">capacity, tokens</text>')
    for (trace, points), colour, at in zip(PAPER.items(), ("#2563eb", "#d97706"), (40, 60)):
        path = f"{traces}/mooncake-fast25/{trace}_trace.jsonl"
        capacities = sorted([*points, *MORE])
        ratios = ours(firn, path, capacities)
        line = " ".join(f"{x_of(c):.1f},{y_of(r):.1f}" for c, r in zip(capacities, ratios))
        svg.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for capacity, ratio in points.items():
            svg.append(f'<circle cx="{x_of(capacity):.1f}" cy="{y_of(ratio):.1f}" r="4" fill="none" stroke="{colour}" '
                       'stroke-width="2"/>')
        svg.append(f'<text x="{LEFT + 12}" y="{at}" fill="{colour}">{trace}: line firn, circles the paper</text>')
        for capacity in sorted(points):
            mine = ratios[capacities.index(capacity)]
            print(f"| {trace} | {capacity / 1e6:g} M | {points[capacity]:.4f} | {mine:.4f} | {mine - points[capacity]:+.4f} |")
    open(out, "w").write("\n".join(svg) + "\n</svg>\n")


main()
