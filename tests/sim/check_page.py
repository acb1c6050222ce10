#!/usr/bin/env python3
"""usage: check_page.py FIRN TRACE CONFIG: looks at a simulation's page in a real browser.

Runs firn simulate with --html and --json, opens the page in headless Chromium with no network, reads the numbers that it
shows back against the JSON, hovers over a chart, and takes screenshots in light and in dark. Exit code 77, which CTest
counts as skipped, where there is no Chromium (Debian: apt-get install chromium).
"""
import html
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib


def browser(chromium, *arguments):
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               "--disable-extensions", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
               "--virtual-time-budget=2000", "--window-size=1000,1600", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


def pixels(path):
    """Mean brightness of an 8-bit RGB(A) PNG, 0 to 255, and how many different values its rows have."""
    data = open(path, "rb").read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, width, height, channels = 8, b"", 0, 0, 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8 and colour in (2, 6), (depth, colour)
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    raw, stride = zlib.decompress(packed), width * channels
    previous, total, seen, count = bytearray(stride), 0, set(), 0
    for y in range(height):
        filter_type = raw[y * (stride + 1)]
        row = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left = row[i - channels] if i >= channels else 0
            above, corner = previous[i], previous[i - channels] if i >= channels else 0
            if filter_type == 1:
                row[i] = (row[i] + left) & 255
            elif filter_type == 2:
                row[i] = (row[i] + above) & 255
            elif filter_type == 3:
                row[i] = (row[i] + (left + above) // 2) & 255
            elif filter_type == 4:
                guess = left + above - corner
                near = min((abs(guess - left), 0, left), (abs(guess - above), 1, above), (abs(guess - corner), 2, corner))
                row[i] = (row[i] + near[2]) & 255
        previous = row
        if y % 8 == 0:
            total += sum(row[1::channels])
            count += width
            seen.update(bytes(row[x:x + 3]) for x in range(0, stride, 4 * channels))
    return total / count, len(seen)


def percent(x):
    return f"{100 * x:.1f} %"


def main():
    firn, trace, config = sys.argv[1:4]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        print("skipped: there is no Chromium; on Debian, apt-get install chromium")
        return 77
    folder = tempfile.mkdtemp()
    page, numbers = os.path.join(folder, "page.html"), os.path.join(folder, "report.json")
    subprocess.run([firn, "simulate", "--config", config, "--trace", trace, "--disk-budget", "100GiB", "--html", page,
                    "--json", numbers], check=True)
    report = json.load(open(numbers))
    # A copy of the page that moves the mouse over the first chart and keeps what is shown.
    text = open(page).read()
    probe = """<script>{const chart=document.querySelector('svg'),box=chart.getBoundingClientRect();
chart.dispatchEvent(new MouseEvent('mousemove',{clientX:box.left+box.width/2,clientY:box.top+9,bubbles:true}));
const kept=document.createElement('pre');kept.id='hovered';kept.textContent=document.getElementById('tip').textContent;
document.body.append(kept);}</script></body>"""
    hover = os.path.join(folder, "hover.html")
    open(hover, "w").write(text.replace("</body>", probe))
    dom = browser(chromium, "--dump-dom", "file://" + hover)

    def shown(name):
        found = re.search(f'id="v_{name}"[^>]*>([^<]*)<', dom)
        assert found, f"the page does not show {name}"
        return html.unescape(found.group(1))

    def number(name):
        return float(re.match(r"[-0-9.,]+", shown(name)).group().replace(",", ""))

    def scaled(name, units):
        return number(name) * units[shown(name).split()[1]]

    times = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600}
    sizes = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    assert shown("token_hit_ratio") == percent(report["token_hit_ratio"]), shown("token_hit_ratio")
    assert shown("finished") == f"{report['finished']:,} of {report['requests']:,}", shown("finished")
    assert number("preemptions") == report["preemptions"]
    assert abs(number("cost") - report["cost_per_million_tokens"]) < 1e-3
    moved = report["bytes"]["host_down"]
    assert abs(scaled("host_down", sizes) - moved) <= 0.051 * sizes[shown("host_down").split()[1]], shown("host_down")
    for tier, blocks in report["hits"].items():
        assert number("hits_" + tier) == blocks, tier
    for reason, blocks in report["misses"].items():
        assert number("miss_" + reason) == blocks, reason
    for key in ("p50", "p95"):
        unit = shown("ttft_" + key).split()[1]
        near = times[unit] * (0.051 if unit in ("s", "h") else 0.51)
        assert abs(scaled("ttft_" + key, times) - report["ttft_s"][key]) <= near, (key, shown("ttft_" + key))
    assert dom.count("<svg") == 8, dom.count("<svg")  # hits, first token, waiting, running, busy, tiers, two links
    assert dom.count("<polyline") >= 8, dom.count("<polyline")
    for words in ("Settings", "What is assumed"):
        assert words in dom, words
    # The first chart is the hit rate by the interval.
    hovered = html.unescape(re.search(r'id="hovered">([^<]*)<', dom).group(1))
    value, unit = hovered.split("\n")[0].split()
    at, near = float(value.replace(",", "")) * times[unit], times[unit] * 0.051  # as far as the screen tells
    wanted = {percent(s["hit_tokens"] / s["input_tokens"]).replace(".0 %", " %") if s["input_tokens"] else "none"
              for s in report["samples"] if abs(s["seconds"] - at) <= near}
    assert hovered.split(": ")[-1] in wanted, (hovered, wanted)

    shots = {}
    for scheme, value in (("light", "1"), ("dark", "0")):
        file = os.path.join(folder, scheme + ".png")
        browser(chromium, "--screenshot=" + file, f"--blink-settings=preferredColorScheme={value}", "file://" + page)
        shots[scheme] = pixels(file)
        print(scheme, "brightness %.0f, %d colours" % shots[scheme])
    assert shots["light"][0] > 180 and shots["dark"][0] < 90, shots
    assert all(colours > 40 for _, colours in shots.values()), "an empty page"
    if os.environ.get("KEEP_SCREENSHOTS"):
        for scheme in shots:
            shutil.copy(os.path.join(folder, scheme + ".png"), os.environ["KEEP_SCREENSHOTS"])
    shutil.rmtree(folder)
    print("the page shows what the JSON says")
    return 0


sys.exit(main())
