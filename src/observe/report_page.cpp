#include "observe/report_page.h"

namespace temper {

const char* const kReportStyle = R"css(
:root{--page:#f3f5f8;--line:#e1e5eb;--good:#15803d;--bad:#c02636;--mid:#a16207;--goodbg:#e9f7ee;--badbg:#fdeef0;--midbg:#fdf6e3;--code:#f6f7f9;--accent:#2563c9;
--steel:linear-gradient(90deg,#e9c46a,#d9741c 28%,#9b3f8f 62%,#2563c9)}
@media(prefers-color-scheme:dark){:root{--page:#0f1318;--line:#29303b;--good:#4ade80;--bad:#ff7d8c;--mid:#f0c95a;--goodbg:#12271b;--badbg:#2e161b;--midbg:#2b2412;--code:#12161d;--accent:#6ea3ff}}
*{box-sizing:border-box}html{color-scheme:light dark;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
body::before{content:"";display:block;height:5px;background:var(--steel)}
main,header{max-width:1560px;margin:0 auto;padding:0 28px}
header{padding-top:30px}h1{font-size:30px;line-height:1.15;margin:0;letter-spacing:-.015em}
h2{font-size:21px;margin:44px 0 4px;letter-spacing:-.01em}h3{font-size:15px;margin:26px 0 10px}
.facts{display:flex;flex-wrap:wrap;gap:6px 26px;margin:12px 0 0;padding:0;color:var(--muted);font-size:14px}.facts b{color:var(--ink);font-weight:500}
nav{position:sticky;top:0;z-index:2;background:var(--page);margin-top:18px;border-bottom:1px solid var(--line)}
nav div{max-width:1560px;margin:0 auto;padding:0 28px;display:flex;gap:22px;flex-wrap:wrap}
nav a{color:var(--muted);text-decoration:none;padding:9px 0;font-size:14px;border-bottom:2px solid transparent}nav a:hover{color:var(--ink);border-color:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:16px;margin-top:22px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0;min-width:0}
.tile h3{margin:0;font-size:17px}.tile p{margin:2px 0 10px;color:var(--muted);font-size:13.5px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td{padding:3px 0;vertical-align:baseline}td+td{text-align:right;white-space:nowrap}
td.big{font-size:21px;font-weight:600;letter-spacing:-.01em;text-align:right}td.from{color:var(--muted)}.up{color:var(--good)}.down{color:var(--bad)}.small{font-size:13px;color:var(--muted)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:16px;margin-top:14px}
.wide{margin-top:16px;overflow-x:auto}.wide svg{min-width:720px}figure svg{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-y}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;justify-content:space-between;gap:0 12px;margin-bottom:6px;font-weight:600;font-size:14.5px}
figcaption .last{font-weight:500;color:var(--muted);font-size:13px;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:4px 0 0;padding:0;list-style:none;font-size:12px;color:var(--muted);overflow-wrap:anywhere}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);margin-right:5px;vertical-align:-1px}
.cursor{stroke:var(--muted);stroke-dasharray:3 3;pointer-events:none}
#tip{position:fixed;z-index:5;pointer-events:none;background:var(--paper);color:var(--ink);border:1px solid var(--axis);border-radius:8px;padding:7px 10px;font-size:12.5px;box-shadow:0 4px 16px #0003;font-variant-numeric:tabular-nums;max-width:340px;display:none}
#tip div{display:flex;justify-content:space-between;gap:16px}#tip i{display:inline-block;width:9px;height:9px;border-radius:2px;background:var(--c);margin-right:6px}
.moments{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px;align-items:start}
.moments>.card>h4{margin:0 0 8px;font-size:14px}.prompt{margin:0 0 10px}.group+.group{border-top:1px solid var(--line);margin-top:16px;padding-top:14px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.prompt pre,details pre.file{background:var(--code);border-radius:7px;padding:8px 10px}.prompt .small{margin:4px 0 0}
.completion{border-left:4px solid var(--mid);background:var(--midbg);border-radius:0 7px 7px 0;padding:7px 10px;margin-top:8px}
.completion.good{border-color:var(--good);background:var(--goodbg)}.completion.bad{border-color:var(--bad);background:var(--badbg)}.completion.failed{border-left-style:dashed}
.chips{display:flex;flex-wrap:wrap;gap:3px 12px;margin-bottom:3px;font-size:12px;color:var(--muted);font-variant-numeric:tabular-nums}.chips b{color:var(--mid);font-weight:650}.good .chips b{color:var(--good)}.bad .chips b{color:var(--bad)}
.note{border-left:3px solid var(--mid);padding:2px 12px;color:var(--muted);margin:14px 0 0;font-size:14px}.constants{color:var(--muted);font-size:13px;margin:12px 0 0}
details{margin-top:18px}summary{cursor:pointer;color:var(--accent);font-size:14px}details pre.file{margin-top:10px;max-height:560px;overflow:auto}
footer{max-width:1560px;margin:44px auto 0;padding:16px 28px 30px;color:var(--muted);font-size:13px;border-top:1px solid var(--line)}
@media print{nav,#tip{display:none}.card{break-inside:avoid}}
)css";

const char* const kReportScript = R"js(
"use strict";
(() => {
  const tip = document.getElementById("tip"), name = document.createElement("b");
  const show = v => v === null ? "–" : Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(4));
  for (const figure of document.querySelectorAll("figure[data-series]")) {
    const svg = figure.querySelector("svg"), data = JSON.parse(figure.dataset.series);
    const [low, high, from, to] = svg.dataset.x.split(" ").map(Number), [, , bottom, top] = svg.dataset.y.split(" ").map(Number);
    const xs = [...new Set(data.flatMap(s => s.x))].sort((a, b) => a - b);
    const maps = data.map(s => new Map(s.x.map((x, i) => [x, s.y[i]])));
    const cursor = document.createElementNS(svg.namespaceURI, "path");
    cursor.setAttribute("class", "cursor");
    const hide = () => { tip.style.display = "none"; cursor.remove(); };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const x = low + ((event.clientX - box.left) * scale - from) / (to - from) * (high - low);
      const near = xs.reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a, xs[0]);
      if (near === undefined) return;
      const at = from + (near - low) / (high - low) * (to - from);
      cursor.setAttribute("d", `M${at} ${top}V${bottom}`);
      svg.append(cursor);
      name.textContent = figure.dataset.x + " " + show(near);
      tip.replaceChildren(name);
      data.forEach((s, i) => {
        const value = maps[i].get(near);
        if (value === undefined) return;
        const row = document.createElement("div"), label = document.createElement("span"), number = document.createElement("span"), swatch = document.createElement("i");
        swatch.className = "s" + s.c;
        label.append(swatch, s.n);
        number.textContent = value !== null && figure.dataset.percent ? show(value * 100) + "%" : show(value);
        row.append(label, number);
        tip.append(row);
      });
      tip.style.display = "block";
      const width = tip.offsetWidth, height = tip.offsetHeight;
      tip.style.left = Math.min(event.clientX + 16, innerWidth - width - 8) + "px";
      tip.style.top = Math.max(8, Math.min(event.clientY - height - 12, innerHeight - height - 8)) + "px";
    });
  }
})();
)js";

}  // namespace temper
