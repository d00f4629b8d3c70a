"""The page's CSS: light and dark by the reader's setting, one column on a phone, black on white on paper."""

STYLESHEET = """
:root {
  --page: #f5f7fa; --card: #ffffff; --text: #1b2430; --muted: #5a6675; --line: #dfe4eb; --soft: #eef2f6;
  --edge: #1b243033;
  --trained: #0072b2; --scratch: #98a2b0; --chance: #d55e00; --good: #00795a; --bad: #b3410e;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color-scheme: light dark;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --text: #e6edf3; --muted: #9aa7b6; --line: #2b333e; --soft: #1e252e;
    --edge: #000000aa;
    --trained: #58b2ea; --scratch: #76818f; --chance: #f0a030; --good: #34c79a; --bad: #f0883e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans",
    sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { margin: 6px 0 10px; font-size: 34px; line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 21px; line-height: 1.3; letter-spacing: -.01em; }
h3.of-table { margin: 22px 0 6px; font-size: 15px; line-height: 1.4; }
h3.of-table:first-child { margin-top: 0; }
p { margin: 0 0 12px; }
a { color: var(--trained); }
.contents { margin-top: 26px; }
.contents ul { display: flex; flex-wrap: wrap; gap: 6px 8px; padding: 0; list-style: none; font-size: 14px; }
.contents li { margin: 0; }
.contents a {
  display: block; padding: 5px 13px; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  color: var(--text); text-decoration: none;
}
.contents a:hover { border-color: var(--trained); color: var(--trained); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--trained); outline-offset: 2px; border-radius: 4px;
}
section[id] { scroll-margin-top: 8px; }
.eyebrow { margin: 0; color: var(--muted); font-size: 14px; font-weight: 600; }
.lead { max-width: 76ch; margin: 0; color: var(--muted); }
.lead b { color: var(--text); font-weight: 600; }
.pill {
  display: inline-block; vertical-align: middle; margin-left: 12px; padding: 3px 11px; border-radius: 99px;
  font-size: 13px; line-height: 1.5; font-weight: 600; letter-spacing: 0; white-space: nowrap;
  background: var(--soft); color: var(--good);
}
.pill.off { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px; }
.alarm { margin: 22px 0 0; border-color: var(--bad); border-left-width: 5px; font-size: 14.5px; color: var(--bad); }
.hero {
  display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 22px 44px; align-items: center;
  margin-top: 26px; padding: 28px;
}
.big {
  font-size: 62px; line-height: 1; font-weight: 700; letter-spacing: -.035em; font-variant-numeric: tabular-nums;
}
.big small { font-size: 28px; font-weight: 600; letter-spacing: 0; color: var(--muted); }
.what { margin: 12px 0 0; font-weight: 600; }
.versus { margin: 2px 0 0; color: var(--muted); }
.gain { color: var(--good); font-weight: 700; white-space: nowrap; }
.gain.loss { color: var(--bad); }
.bars {
  display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: 10px 14px; align-items: center;
  font-size: 14.5px;
}
.bars .name { color: var(--muted); }
.bars .value { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; }
.track, .cell { background: var(--soft); position: relative; print-color-adjust: exact; }
.track { height: 18px; border-radius: 5px; }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--trained); }
.fill.scratch { background: var(--scratch); }
.chance { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--chance); }
.key { grid-column: 1 / -1; margin: 2px 0 0; font-size: 13px; color: var(--muted); }
.key i { display: inline-block; width: 2px; height: 12px; margin-right: 8px; vertical-align: -1px; }
.key i { background: var(--chance); print-color-adjust: exact; }
.protocol { grid-column: 1 / -1; margin: 0; padding-top: 14px; border-top: 1px solid var(--line); }
.protocol, .aside { font-size: 13.5px; color: var(--muted); overflow-wrap: anywhere; }
.aside { margin: 12px 0 0; max-width: 96ch; }
.scroll {  /* a shadow at the side where there is more to scroll to */
  overflow-x: auto; background:
    linear-gradient(to right, var(--card) 40%, transparent) left / 36px 100% no-repeat local,
    linear-gradient(to left, var(--card) 40%, transparent) right / 36px 100% no-repeat local,
    linear-gradient(to right, var(--edge), transparent) left / 12px 100% no-repeat scroll,
    linear-gradient(to left, var(--edge), transparent) right / 12px 100% no-repeat scroll;
}
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 16px 8px 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
th { font-size: 13px; font-weight: 600; color: var(--muted); vertical-align: bottom; line-height: 1.35; }
td:first-child { min-width: 11.5em; }
td.n small { white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; }
td.n { white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
td small { color: var(--muted); font-size: 12.5px; }
td b { font-weight: 650; }
tr.group th { padding-top: 16px; color: var(--text); }
tbody tr.group:first-child th { padding-top: 8px; }
tr.sub td { color: var(--muted); }
tr.sub td:first-child { padding-left: 14px; }
.cell { display: inline-block; width: 84px; height: 9px; margin-right: 10px; border-radius: 3px; overflow: hidden; }
.cell i { position: absolute; inset: 0 auto 0 0; background: var(--trained); print-color-adjust: exact; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.card + .pictures { margin-top: 16px; }
figure { margin: 0; break-inside: avoid; }
figure.card { padding: 16px 16px 14px; }
figure img { display: block; width: 100%; max-width: var(--drawn, 100%); height: auto; margin: 0 auto; }
figure img.dark { display: none; }
@media screen and (prefers-color-scheme: dark) {
  figure img.dark { display: block; }
  figure img.light { display: none; }
}
figure.wide, figure:only-child { grid-column: 1 / -1; }
figcaption { margin-top: 10px; font-size: 13.5px; line-height: 1.5; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 7px 28px; margin: 0; font-size: 14.5px; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre {
  margin: 0; padding: 14px 16px; border-radius: 10px; background: var(--soft); white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.55 var(--mono);
}
pre + details { margin-top: 14px; }
summary { cursor: pointer; color: var(--trained); font-size: 14.5px; }
details[open] summary { margin-bottom: 10px; }
ul { margin: 0; padding-left: 20px; font-size: 14.5px; }
ul.after { margin-top: 14px; }
ul.warnings { margin: 26px 0 0; padding: 16px 24px 16px 42px; border-left: 5px solid var(--bad); }
li { margin: 6px 0; overflow-wrap: anywhere; }
li.warn { color: var(--bad); }
footer { margin-top: 44px; font-size: 13px; color: var(--muted); }
@media (max-width: 720px) {
  main { padding: 24px 14px 40px; }
  h1 { font-size: 28px; }
  h2 { margin-top: 34px; }
  .card { padding: 16px; border-radius: 12px; }
  .hero { grid-template-columns: minmax(0, 1fr); padding: 20px 16px; }
  .big { font-size: 52px; }
  .pictures { grid-template-columns: minmax(0, 1fr); }
  figure.card { padding: 10px 8px 12px; }
  figcaption { padding: 0 6px; }
  figure.wide { overflow-x: auto; }
  figure.wide img { width: 560px; max-width: none; }
  .contents ul { gap: 6px; }
  .contents a { padding: 7px 12px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 9px; }
  .cell { display: none; }
  table { font-size: 14px; }
  th, td { padding-right: 12px; }
  td:first-child { min-width: 8.5em; }
}
@media print {
  :root { --page: #ffffff; }
  body { font-size: 10.5pt; }
  table { font-size: 9pt; }
  th, td { padding: 5px 9px 5px 0; }
  td:first-child { min-width: 8em; }
  .scroll { overflow-x: visible; background: none; }
  figure img { width: auto; max-width: min(100%, var(--drawn, 100%)); max-height: 17cm; }
  main { max-width: none; padding: 0; }
  .card { border-color: #cccccc; }
  .contents { display: none; }
  .hero, .alarm, tr, li { break-inside: avoid; }
  thead { display: table-header-group; }
  h3, tr.group { break-after: avoid; }
  h2 { break-after: avoid; margin-top: 22px; }
  .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
