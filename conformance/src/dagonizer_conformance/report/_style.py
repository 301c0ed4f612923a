"""How the page looks."""

from __future__ import annotations

from dagonizer_conformance.results import Status

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "line": "#dfe3e8",
    "text": "#1b1f24",
    "quiet": "#59616b",
    Status.PASS.lower(): "#0f6a2c",
    Status.FAIL.lower(): "#b3141f",
    Status.XFAIL.lower(): "#7a4b00",
    Status.UNSUPPORTED.lower(): "#505862",
    Status.UNVERIFIED.lower(): "#0b55b5",
    Status.INCONCLUSIVE.lower(): "#6a35c0",
    Status.ERROR.lower(): "#9c1f6b",
}
DARK = {
    "page": "#0e1116",
    "card": "#161b22",
    "line": "#2d343d",
    "text": "#e8ecf1",
    "quiet": "#9aa4b0",
    Status.PASS.lower(): "#4cc26a",
    Status.FAIL.lower(): "#ff7b72",
    Status.XFAIL.lower(): "#e0a83a",
    Status.UNSUPPORTED.lower(): "#a3adb8",
    Status.UNVERIFIED.lower(): "#6cb0ff",
    Status.INCONCLUSIVE.lower(): "#bd97ff",
    Status.ERROR.lower(): "#f08cc4",
}
"""The colours of both schemes; each is readable as text on ``page``, on ``card``, and on a tint of itself."""

TINT = 0.1
"""How much of a status's colour is in the ground that its name is written on."""


def style() -> str:
    """Return the style sheet."""
    statuses = "".join(
        f".{status.lower()}{{--colour:var(--{status.lower()});"
        f"--tint:color-mix(in srgb,var(--colour) {TINT:.0%},var(--card))}}"
        for status in Status
    )
    light = ";".join(f"--{name}:{colour}" for name, colour in LIGHT.items())
    dark = ";".join(f"--{name}:{colour}" for name, colour in DARK.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{statuses}{_RULES}"


_RULES = """
:root {
  color-scheme: light dark;
  --shadow: color-mix(in srgb, var(--text) 22%, transparent);
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1, h2, h3, p, dl, dd, ul, figure { margin: 0; padding: 0; }
h1 { font-size: 1.75rem; line-height: 1.25; letter-spacing: -.015em; font-weight: 650; }
h2 { font-size: 1.2rem; line-height: 1.3; letter-spacing: -.01em; font-weight: 650; margin: 3.5rem 0 1rem; }
h3 { font-size: 1rem; font-weight: 600; }
code, pre, .id { font-family: var(--mono); font-size: .8125rem; }
a { color: inherit; text-underline-offset: .2em; text-decoration-color: var(--quiet); }
:focus-visible { outline: 2px solid var(--unverified); outline-offset: 2px; border-radius: 4px; }
.quiet { color: var(--quiet); }
.eyebrow { color: var(--quiet); font-size: .8125rem; font-weight: 600; letter-spacing: .02em; margin-bottom: .375rem; }
.verdict { display: flex; gap: .625rem; align-items: baseline; margin-top: .875rem; font-size: 1.125rem;
  font-weight: 600; color: var(--colour); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }

.levels { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin-top: 2rem; list-style: none; }
.level { display: flex; flex-direction: column; padding: 1rem 1.125rem 1.125rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--card); }
.level strong { display: flex; justify-content: space-between; font-size: 1.125rem; letter-spacing: .02em;
  font-weight: 700; }
.level span { display: block; font-size: .875rem; }
.level .standing { margin-top: auto; padding-top: .5rem; font-weight: 600; }
.level.earned { background: var(--tint); border-color: color-mix(in srgb, var(--colour) 45%, var(--card)); }
.level.earned strong, .level.earned .standing { color: var(--colour); }
.level.missing { border: 1px dashed color-mix(in srgb, var(--quiet) 55%, var(--page)); background: none; }
.level.missing strong { color: var(--quiet); }
.chips { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .75rem; list-style: none; font-size: .875rem; }
.chip { padding: .25rem .75rem; border: 1px dashed color-mix(in srgb, var(--quiet) 55%, var(--page));
  border-radius: 99px; color: var(--quiet); }
.chip b { font-weight: 600; color: var(--text); }
.chip.earned { border: 1px solid color-mix(in srgb, var(--colour) 45%, var(--card)); background: var(--tint); }
.chip.earned, .chip.earned b { color: var(--colour); }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem 1.5rem;
  margin-top: 2rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.facts dt { color: var(--quiet); font-size: .8125rem; }
.facts dd { font-size: .9375rem; }
.facts .wide { grid-column: span 2; }

.overview { padding: 1.25rem 1.375rem 1.375rem; }
.counts { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; list-style: none; }
.counts li { display: flex; align-items: baseline; gap: .5rem; color: var(--colour); font-size: .8125rem;
  font-weight: 600; letter-spacing: .02em; }
.counts b { font-size: 1.625rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.3; }
.share { display: flex; gap: 2px; height: 8px; margin: .625rem 0 1.5rem; border-radius: 4px; overflow: hidden; }
.share span { background: var(--colour); min-width: 4px; }
.map { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: .5rem 2.5rem;
  list-style: none; }
.map li { display: grid; grid-template-columns: 9.5rem 1fr; gap: .75rem; align-items: center; font-size: .875rem; }
.map a { text-decoration: none; }
.map a:hover { text-decoration: underline; }
.cells { display: flex; flex-wrap: wrap; gap: 3px; }
.cells i { width: 18px; height: 18px; border-radius: 4px; background: var(--tint); color: var(--colour);
  font: 700 12px/18px var(--mono); text-align: center; }
.cells .fail, .cells .error { background: var(--colour); color: var(--card); }

.failure { margin-top: 1rem; padding: 1.375rem 1.5rem 1.5rem; border-left: 4px solid var(--colour); }
.failure header { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: baseline; }
.failure h3 { font-size: 1.0625rem; margin-top: .5rem; }
.failure h4 { margin: 1.375rem 0 .5rem; font-size: .8125rem; font-weight: 600; color: var(--quiet); }
pre { margin: 0; padding: .75rem .875rem; border: 1px solid var(--line); border-radius: 8px; background: var(--page);
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; tab-size: 4; }
.option { display: inline-block; max-width: 100%; vertical-align: top; }
.detail { margin-top: .75rem; }
.pill { display: inline-flex; gap: .375rem; align-items: baseline; padding: .0625rem .5rem; border-radius: 5px;
  background: var(--tint); color: var(--colour); font-size: .75rem; font-weight: 650; letter-spacing: .02em;
  white-space: nowrap; }
.pill.pass { background: none; padding-left: 0; }
.pill i, .counts i, .verdict i { font: 700 1em/1 var(--mono); }

details > summary { cursor: pointer; list-style: none; }
details > summary::-webkit-details-marker { display: none; }
details > summary::before { content: ""; flex: none; width: .4375rem; height: .4375rem; margin-right: .125rem;
  border: solid var(--quiet); border-width: 0 1.5px 1.5px 0; transform: rotate(-45deg); transition: transform .12s; }
details[open] > summary::before { transform: rotate(45deg) translate(-1px, -1px); }
.group { margin-top: .75rem; overflow: clip; }
.group > summary { display: flex; gap: .75rem; align-items: center; padding: .8125rem 1.375rem; }
.group > summary .tally { margin-left: auto; font-size: .875rem; color: var(--quiet); text-align: right;
  overflow-wrap: normal; }
.more > summary { display: inline-flex; gap: .625rem; align-items: center; font-size: .875rem; color: var(--quiet); }
.more { margin-top: .625rem; }
.more pre { margin-top: .625rem; overflow-x: auto; white-space: pre; }
table { width: 100%; border-collapse: collapse; }
th { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
td { padding: .625rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { width: 11rem; padding-left: 1.375rem; }
td:last-child { width: 6rem; padding-right: 1.375rem; text-align: right; white-space: nowrap; font-size: .8125rem;
  color: var(--quiet); }
td .id { color: var(--quiet); font-size: .75rem; }
td .why { margin-top: .125rem; font-size: .875rem; color: var(--colour, var(--quiet)); white-space: pre-line; }
.note { margin-top: 1.5rem; max-width: 44rem; }
tr:target td { background: color-mix(in srgb, var(--unverified) 8%, var(--card)); }

.compared { overflow-x: auto; }
header + .compared { margin-top: 2rem; }
.compared > table { min-width: calc(17rem + 7.5rem * var(--stores)); table-layout: fixed; }
.compared th, .compared td { position: static; width: auto; height: auto; overflow: visible; clip-path: none;
  padding: .5rem .75rem; border-top: 1px solid var(--line); text-align: left; vertical-align: top; font-size: .875rem;
  font-weight: 400; white-space: normal; }
.compared thead th { border-top: 0; font-weight: 650; }
.compared th:first-child { width: 36%; padding-left: 1.375rem; }
.compared td, .compared td:last-child { color: var(--colour); }
.compared td .quiet, .compared td.quiet, .compared td.quiet:last-child { color: var(--quiet); font-size: .8125rem; }
.compared .id { color: var(--quiet); font-size: .75rem; }
.group.compared thead { border-top: 1px solid var(--line); }
.runs { display: grid; gap: 1rem; list-style: none; font-size: .9375rem; }

.history { display: flex; margin-top: .25rem; }
.history svg { display: block; flex: none; font: 12px var(--mono); fill: var(--text); }
.scroll { flex: 1; min-width: 0; overflow-x: auto; border-left: 1px solid var(--line);
  /* Shadows at the edges where there is more to scroll to: the covers move with the drawing, the shadows stay. */
  background:
    linear-gradient(90deg, var(--card) 50%, transparent) 0 0 / 32px 100% no-repeat local,
    linear-gradient(-90deg, var(--card) 50%, transparent) 100% 0 / 32px 100% no-repeat local,
    linear-gradient(90deg, var(--shadow), transparent) 0 0 / 14px 100% no-repeat scroll,
    linear-gradient(-90deg, var(--shadow), transparent) 100% 0 / 14px 100% no-repeat scroll; }
.client { fill: var(--quiet); }
.lane, .tick { stroke: var(--line); }
.tick { stroke-dasharray: 2 3; }
.axis { stroke: var(--quiet); }
.time { fill: var(--quiet); font-size: 11px; }
g:hover > .bar { stroke-width: 2; }
.writes { fill: color-mix(in srgb, var(--xfail) 14%, var(--card)); stroke: var(--xfail); }
.reads { fill: color-mix(in srgb, var(--unverified) 12%, var(--card)); stroke: var(--unverified); }
.open { stroke-dasharray: 4 3; }
.call { font-weight: 600; }
.axis-title { margin: .25rem 0 .375rem; font-size: .8125rem; color: var(--quiet); }
.keys { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .8125rem; color: var(--quiet); }
.keys span { display: inline-flex; gap: .375rem; align-items: center; }

.legend { display: grid; grid-template-columns: max-content 1fr; gap: .625rem 1.25rem; font-size: .9375rem; }
.legend dd { color: var(--quiet); max-width: 44rem; }

@media (max-width: 40rem) {
  main { padding: 2rem 1rem 3rem; }
  h1 { font-size: 1.375rem; }
  h2 { margin-top: 2.5rem; }
  .levels { grid-template-columns: 1fr; gap: .5rem; }
  .level { display: flex; flex-direction: column; padding: .75rem 1rem; }
  .facts { grid-template-columns: 1fr 1fr; }
  .overview { padding: 1rem; }
  .map li { grid-template-columns: 8.25rem 1fr; }
  .failure { padding: 1rem; }
  .group > summary { padding: .75rem 1rem; }
  .group:not(.compared) tbody tr { display: grid; grid-template-columns: 1fr auto; border-top: 1px solid var(--line);
    padding: .625rem 1rem; gap: .125rem .75rem; }
  td, td:first-child, td:last-child { width: auto; padding: 0; border: 0; }
  td:nth-child(2) { grid-row: 2; grid-column: 1 / -1; }
  .legend { grid-template-columns: 1fr; gap: .25rem; }
  .legend dd { margin-bottom: .625rem; }
}
@media print {
  body { background: none; }
  .failure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""
