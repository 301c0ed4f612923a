import io
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.report import FORMATS, read_json, render
from dagonizer_conformance.report._style import DARK, LIGHT, TINT
from dagonizer_conformance.report._visible import made_visible
from dagonizer_conformance.report._wording import duration, verdict
from dagonizer_conformance.report.comparison import print_comparison, render_comparison, worst_exit_code
from dagonizer_conformance.report.terminal import Progress, print_report, print_timeline
from dagonizer_conformance.results import Capability, Level, Operation, Report, Result, Status

HOSTILE = "<script>alert('1')</script> ]]> & \" \x00 \x1b[31m \ud800 \udfff \ufffe \u202e ``` ```` | [bold]x[/bold] \\ a\r\n\tb"


def result(case_id="key.case-is-kept", status=Status.PASS, *, level=Level.CORE, capability=None, **fields):
    defaults = {"sentence": "Keys that differ only in case are different keys.", "detail": "", "seconds": 0.25}
    return Result(
        id=case_id,
        group=case_id.partition(".")[0],
        level=level,
        capability=capability,
        status=status,
        **{**defaults, **fields},
    )


def report(*results, **fields):
    defaults = {
        "store": "acme://localhost",
        "namespaces": "a prefix per case",
        "seed": 7,
        "budget": "default",
        "started": "2026-11-23T12:00:00Z",
        "seconds": 61.5,
        "kit_version": "0.1.0",
        "python": "3.11.9",
        "complete": True,
    }
    return Report(results=results, **{**defaults, **fields})


def operation(client, name, argument, started, ended, outcome, key="k"):  # noqa: PLR0917 - a table of them is easier to read
    return Operation(f"client {client}", name, key, argument, started, ended, outcome)


HISTORY = (
    operation(1, "save", "writer 1 #1", 0.010, 0.210, "None"),
    operation(2, "load", None, 0.050, 0.190, "writer 1 #1"),
    operation(2, "load", None, 0.215, 0.400, "None"),
)
UNEVEN_HISTORY = (
    *HISTORY,
    operation(10, "load", None, 0.220, 0.220003, "None"),
    operation(1, "delete", None, 0.3, None, "unknown"),
)

EVERY_STATUS = report(
    result("basic.pass"),
    result(
        "basic.fail", Status.FAIL, detail="saw `x`\nnot `y`", reproduction="dagonizer-conformance acme: -k basic.fail\n"
    ),
    result("value.xfail", Status.XFAIL, detail="tolerated until 2027-01-31"),
    result("listing.absent", Status.UNSUPPORTED, level=None, capability=Capability.LISTING, detail="no list_keys"),
    result("close.twice", level=None, capability=Capability.CLOSE),
    result("durability.kill", Status.UNVERIFIED, level=Level.CRASH_SAFE, detail="the harness has no kill()"),
    result("cancellation.late", Status.INCONCLUSIVE, level=Level.CONCURRENT, detail="no overlap"),
    result("errors.proxy", Status.ERROR, detail="OSError: address in use"),
    result("linearizability.one-key", Status.FAIL, level=Level.CONCURRENT, detail="no order", timeline=HISTORY),
)
ALL_PASS = report(
    result("basic.a"), result("atomicity.b", level=Level.CONCURRENT), result("durability.c", level=Level.CRASH_SAFE)
)
HOSTILE_REPORT = report(
    *(
        result(
            f"{status}{HOSTILE}",
            status,
            sentence=HOSTILE,
            detail=HOSTILE,
            reproduction=HOSTILE,
            timeline=(Operation(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.1, None, HOSTILE), *HISTORY),
        )
        for status in Status
    ),
    store=HOSTILE,
    namespaces=HOSTILE,
    budget=HOSTILE,
    started=HOSTILE,
    kit_version=HOSTILE,
    python=HOSTILE,
)
REPORTS = {
    "every status": EVERY_STATUS,
    "all pass": ALL_PASS,
    "hostile": HOSTILE_REPORT,
    "none run": report(),
    "a selection": report(result(), complete=False),
}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a test asks for."""

    # SVG elements are written closed, as in XML.
    VOID = frozenset({"meta"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.attributes, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def printed(print_it, *, width=100, terminal=False):
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, highlight=False, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    print_it(console)
    return stream.getvalue()


def test_an_unknown_format_is_refused_by_naming_those_there_are():
    with pytest.raises(ValueError, match="'pdf'; there are json, junit, markdown, html"):
        render(ALL_PASS, "pdf")


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", REPORTS)
def test_every_format_is_stable_utf_8_without_hidden_characters(file_format, name):
    text = render(REPORTS[name], file_format)
    assert text == render(REPORTS[name], file_format)
    assert text.endswith("\n")
    assert text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ufffe]", text)
    if name == "hostile":
        assert r"\ud800" in text.replace("\\\\", "\\")
        assert r"\x00" in text.replace("\\\\", "\\")


def test_only_what_is_hidden_changes():
    harmless = result(detail="tab\tline\nünïcödé 😀 \u00a0", timeline=HISTORY)
    assert made_visible(harmless) == harmless
    assert made_visible(result(detail="\x00\x1b\x85\ud800\u2028")).detail == r"\x00\x1b\x85\ud800\u2028"


class TestJson:
    def test_it_holds_the_report_and_what_follows_from_it(self):
        document = json.loads(render(EVERY_STATUS, "json"))
        assert list(document)[:6] == ["format", "conforms", "exit_code", "levels", "chips", "counts"]
        assert document["format"] == "dagonizer-conformance/1"
        assert document["conforms"] is False
        assert document["exit_code"] == 3
        assert document["levels"] == []
        assert document["chips"] == ["close"]
        assert document["counts"] == {
            "PASS": 2, "FAIL": 2, "XFAIL": 1, "UNSUPPORTED": 1, "UNVERIFIED": 1, "INCONCLUSIVE": 1, "ERROR": 1,
        }  # fmt: skip
        assert json.loads(render(ALL_PASS, "json"))["levels"] == ["CORE", "CONCURRENT", "CRASH-SAFE"]

    def test_the_report_can_be_read_back(self, tmp_path):
        file = tmp_path / "report.json"
        file.write_text(render(EVERY_STATUS, "json"))
        assert read_json(file) == EVERY_STATUS

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "dagonizer-conformance/1"}', "\xff"])
    def test_another_file_is_refused(self, tmp_path, text):
        file = tmp_path / "report.json"
        file.write_text(text, encoding="latin-1")
        with pytest.raises(TargetError, match="is not a report"):
            read_json(file)

    def test_it_is_indented(self):
        assert render(ALL_PASS, "json").startswith('{\n  "format": "dagonizer-conformance/1",\n')


class TestJUnit:
    def parse(self, of):
        return ET.fromstring(render(of, "junit").encode()).find("testsuite")

    def test_each_status_is_what_build_servers_know(self):
        suite = self.parse(EVERY_STATUS)
        kinds = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
        assert kinds == {
            "basic.pass": [],
            "basic.fail": ["failure"],
            "value.xfail": ["skipped"],
            "listing.absent": ["skipped"],
            "close.twice": [],
            "durability.kill": ["skipped"],
            "cancellation.late": ["error"],
            "errors.proxy": ["error"],
            "linearizability.one-key": ["failure"],
        }
        numbers = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")}
        assert numbers == {"tests": "9", "failures": "2", "errors": "2", "skipped": "3", "time": "61.500"}

    def test_a_case_says_where_it_belongs_and_how_long_it_took(self):
        case = self.parse(EVERY_STATUS).find("testcase")
        assert case.attrib == {"classname": "basic", "name": "basic.pass", "time": "0.250"}

    def test_a_failure_holds_its_detail_its_history_and_its_reproduction(self):
        failures = list(self.parse(EVERY_STATUS).iter("failure"))
        assert failures[0].get("message") == "saw `x`"
        assert "not `y`" in failures[0].text
        assert "dagonizer-conformance acme: -k basic.fail" in failures[0].text
        assert "save writer 1 #1 → None" in failures[1].text

    def test_what_was_skipped_says_why(self):
        messages = [skipped.get("message") for skipped in self.parse(EVERY_STATUS).iter("skipped")]
        assert messages == [
            "XFAIL: tolerated until 2027-01-31",
            "UNSUPPORTED: no list_keys",
            "UNVERIFIED: the harness has no kill()",
        ]

    def test_hostile_text_stays_text(self):
        suite = self.parse(HOSTILE_REPORT)
        assert {element.tag for element in suite.iter()} == {
            "testsuite", "properties", "property", "testcase", "failure", "error", "skipped",
        }  # fmt: skip
        shown = made_visible(result(detail=HOSTILE)).detail
        assert suite.find("properties/property[@name='store']").get("value") == shown
        assert shown in suite.find("testcase/failure").text


class TestMarkdown:
    def test_levels_and_chips_are_told_in_words(self):
        text = render(EVERY_STATUS, "markdown")
        assert "Levels: CORE (not earned: 1 FAIL, 1 XFAIL, 1 ERROR of 4) · CONCURRENT (" in text
        assert "Chips: **close ✓** · listing (not offered)" in text
        assert "**CORE ✓** · **CONCURRENT ✓** · **CRASH-SAFE ✓**" in render(ALL_PASS, "markdown")

    @pytest.mark.parametrize("name", REPORTS)
    def test_every_row_of_a_table_has_the_cells_of_its_header(self, name):
        cells = None
        for line, fenced in self.lines(render(REPORTS[name], "markdown")):
            if fenced or not line.startswith("|"):
                cells = None
                continue
            here = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1
            assert cells in (None, here)
            cells = here

    def test_a_fence_is_longer_than_any_run_of_backticks_in_it(self):
        text = render(HOSTILE_REPORT, "markdown")
        outside = "\n".join(line for line, fenced in self.lines(text) if not fenced)
        assert "`````text\n<script>" in text
        assert "`````sh\n<script>" in text
        # Outside of fences every mark of hostile text is escaped.
        assert "<script>" not in outside.replace("\\<", "")
        assert "```" not in outside

    def test_a_failure_has_its_detail_and_reproduction(self):
        text = render(EVERY_STATUS, "markdown")
        assert "```text\nsaw `x`\nnot `y`\n```" in text
        assert "```sh\ndagonizer-conformance acme: -k basic.fail\n```" in text

    def lines(self, text):
        """Yield each line with whether it is in or of a fence, as CommonMark reads it."""
        fence = ""
        for line in text.split("\n"):
            run = re.match("`{3,}", line)
            if fence:
                yield line, True
                if re.fullmatch(f"{fence}`* *", line):
                    fence = ""
            elif run:
                fence = run[0]
                yield line, True
            else:
                yield line, False
        assert not fence


class TestHtml:
    @pytest.mark.parametrize("name", REPORTS)
    def test_it_is_balanced_has_no_script_and_loads_nothing(self, name):
        text = render(REPORTS[name], "html")
        page = Page(text)
        assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
        assert "url(" not in text
        assert "@import" not in text

    @pytest.mark.parametrize("name", REPORTS)
    def test_every_link_leads_to_one_place_in_the_page(self, name):
        page = Page(render(REPORTS[name], "html"))
        assert len(page.ids) == len(set(page.ids))
        assert {link.removeprefix("#") for link in page.links} <= set(page.ids)

    def test_hostile_text_is_shown_as_it_is(self):
        page = Page(render(HOSTILE_REPORT, "html"))
        assert made_visible(result(detail=HOSTILE)).detail in page.text

    def test_it_shows_every_case_with_its_status_in_words(self):
        page = Page(render(EVERY_STATUS, "html"))
        rows = page.text[page.text.index("All cases") :]
        for each in EVERY_STATUS.results:
            assert f"{each.id} · {each.level or each.capability}" in rows
            assert each.status in rows
        assert "saw `x`\nnot `y`" in page.text
        assert "dagonizer-conformance acme: -k basic.fail" in page.text
        assert "the harness has no kill()" in page.text

    def test_it_says_what_is_not_known(self):
        assert Page(render(ALL_PASS, "html")).text.count("Nobody knows") == 2

    def test_a_selection_earns_nothing_and_says_so(self):
        page = Page(render(report(result(), complete=False), "html"))
        assert "Only a selection of the cases was run" in page.text
        assert "earned pass" not in dict(page.attributes).values()

    @pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
    def test_every_status_can_be_read_on_what_it_is_written_on(self, scheme):
        for name in ("text", "quiet", *(status.lower() for status in Status)):
            colour = rgb(scheme[name])
            tint = [
                round(c * TINT + ground * (1 - TINT)) for c, ground in zip(colour, rgb(scheme["card"]), strict=True)
            ]
            for ground in (rgb(scheme["page"]), rgb(scheme["card"]), tint):
                assert contrast(colour, ground) >= 4.5, name


def rgb(colour):
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def contrast(one, other):
    """The contrast ratio of WCAG 2."""

    def luminance(colour):
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


class TestTimeline:
    def drawn(self, history):
        return render(report(result(status=Status.FAIL, timeline=history)), "html")

    def boxes(self, page):
        """The bars of the drawing: left, right, top."""
        page = page[page.index('class="scroll"') : page.index('class="keys"')]
        closed = re.findall(r'<rect class="bar \w+" x="([\d.]{3,})" y="([\d.]+)" width="([\d.]+)" height="40"', page)
        opened = re.findall(r'<path class="bar \w+ open" d="M([\d.]+) ([\d.]+)H([\d.]+)V[\d.]+H[\d.]+"', page)
        return [(float(x), float(x) + float(width), float(y)) for x, y, width in closed] + [
            (float(left), float(right), float(y)) for right, y, left in opened
        ]

    def test_even_durations_are_drawn_to_scale(self):
        page = self.drawn(HISTORY)
        assert "Milliseconds since the case began, to scale." in page
        widths = [right - left + 3 for left, right, _ in self.boxes(page)]
        durations = [each.ended - each.started for each in HISTORY]
        scale = widths[0] / durations[0]
        assert widths == pytest.approx([each * scale for each in durations], abs=0.3)

    def test_uneven_durations_are_drawn_in_order_and_the_axis_says_so(self):
        page = self.drawn(UNEVEN_HISTORY)
        assert "Events in their order, not to scale" in page
        assert 'class="bar writes open" d=' in page
        assert "220.000 to 220.003 ms" in page
        assert "from 300.000 ms, never returned" in page

    @pytest.mark.parametrize("history", [HISTORY, UNEVEN_HISTORY, (*UNEVEN_HISTORY, *HISTORY)])
    def test_no_bar_covers_another_and_every_label_fits(self, history):
        page = self.drawn(history)
        boxes = self.boxes(page)
        assert len(boxes) == len(history)
        for (left, right, top), (other_left, other_right, other_top) in combinations(boxes, 2):
            assert top != other_top or right <= other_left or other_right <= left
        for x, y, label in re.findall(r'<text class="(?:call|outcome)" x="([\d.]+)" y="([\d.]+)">([^<]*)<', page):
            assert any(
                left < float(x) and float(x) + 7.25 * len(label) < right
                for left, right, top in boxes
                if 0 < float(y) - top < 40
            )

    @pytest.mark.parametrize(
        "history",
        [
            (operation(1, "load", None, 1.0, None, "unknown"),),
            (operation(1, "load", None, 1.0, 1.0, "None"),),
            (operation(1, "load", None, 1.0, 0.5, "None"),),
            tuple(
                operation(n % 4, "save", f"writer {n % 4} #{n} " * 9, n * 1e-6, n + 1e-6, "x" * 99) for n in range(60)
            ),
        ],
        ids=["never returned", "no time at all", "a clock that went back", "many and long"],
    )
    def test_odd_histories_are_drawn_too(self, history):
        page = self.drawn(history)
        Page(page)
        assert len(self.boxes(page)) == len(history)

    def test_clients_are_in_the_order_of_their_numbers(self):
        clients = re.findall(r'class="client"[^>]*>([^<]*)<', self.drawn(UNEVEN_HISTORY))
        assert clients == ["client 1", "client 2", "client 10"]

    def test_keys_are_named_where_there_are_several(self):
        page = self.drawn((*HISTORY, operation(3, "load", None, 0.1, 0.3, "None", key="other")))
        assert ">load other<" in page
        assert ">load k<" in page

    def test_in_text_each_operation_is_a_line_in_the_order_of_their_start(self):
        text = printed(lambda console: print_timeline(result(timeline=UNEVEN_HISTORY), console), width=200)
        assert text.splitlines() == [
            "client 1   ├──┤        save writer 1 #1 → None  (10.000 to 210.000 ms)",
            "client 2    ├┤         load → writer 1 #1  (50.000 to 190.000 ms)",
            "client 2       ├───┤   load → None  (215.000 to 400.000 ms)",
            "client 10       ├┤     load → None  (220.000 to 220.003 ms)",
            "client 1          ├─┄  delete → unknown  (from 300.000 ms, never returned)",
        ]


class TestTerminal:
    def run(self, of, console):
        with Progress(console) as progress:
            for number, each in enumerate(of.results, 1):
                progress.started(each.id, number, len(of.results))
                progress.finished(each)

    def test_a_pipe_gets_one_line_for_each_case(self):
        lines = printed(lambda console: self.run(EVERY_STATUS, console)).splitlines()
        assert [line.split()[1:3] for line in lines] == [[each.status, each.id] for each in EVERY_STATUS.results]

    def test_a_terminal_gets_failures_as_they_happen(self):
        text = printed(lambda console: self.run(EVERY_STATUS, console), terminal=True)
        above = [line for line in text.splitlines() if "FAIL" in line or "ERROR" in line]
        assert [name for line in above for name in re.findall(r"\w+\.[\w-]+", line)] == [
            "basic.fail",
            "errors.proxy",
            "linearizability.one-key",
        ]
        assert "basic.pass" not in "".join(above)

    def test_the_report_ends_with_its_verdict(self):
        text = printed(lambda console: print_report(EVERY_STATUS, console))
        assert text.splitlines()[-1] == verdict(EVERY_STATUS)
        assert "not earned: 1 FAIL, 1 XFAIL, 1 ERROR of 4" in text
        assert "dagonizer-conformance acme: -k basic.fail" in text
        assert "durability.kill: the harness has no kill()" in text

    @pytest.mark.parametrize("name", REPORTS)
    @pytest.mark.parametrize("terminal", [True, False])
    def test_data_is_never_markup_nor_a_control_sequence(self, name, terminal):
        def print_all(console):
            self.run(REPORTS[name], console)
            print_report(REPORTS[name], console)

        text = printed(print_all, width=60, terminal=terminal)
        assert text.encode()
        assert "\x1b[31m" not in text
        assert "\x00" not in text
        if name == "hostile":
            assert "[bold]x[/bold]" in text

    def test_a_reproduction_is_not_broken_into_lines(self):
        command = "dagonizer-conformance acme: " + "-k basic.fail " * 20
        failed = report(result(status=Status.FAIL, reproduction=command))
        assert command in printed(lambda console: print_report(failed, console), width=40)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], "No case was run, which says nothing of the store."),
        (["PASS"], "Conforms: the only case passed."),
        (["PASS", "PASS"], "Conforms: all 2 cases passed."),
        (["PASS", "UNVERIFIED"], "Conforms as far as it could be checked: 1 of 2 cases passed, 1 UNVERIFIED."),
        (["PASS", "XFAIL"], "Deviates where its harness says so: 1 of 2 cases passed, 1 XFAIL."),
        (["PASS", "INCONCLUSIVE"], "Inconclusive: 1 of 2 cases could not tell."),
        (["UNVERIFIED"], "Inconclusive: none of 1 cases passed."),
        (["PASS", "FAIL", "INCONCLUSIVE"], "Does not conform: 1 of 3 cases failed."),
        (["ERROR", "FAIL"], "The kit or the harness was at fault in 1 of 2 cases, and 1 of 2 cases failed."),
    ],
)
def test_the_verdict_agrees_with_the_exit_code(statuses, expected):
    of = report(*(result(status=Status(status)) for status in statuses))
    assert verdict(of) == expected
    begins = {0: ("Conforms", "Deviates"), 1: ("Does not",), 2: ("Inconclusive",), 3: ("The kit", "No case")}
    assert expected.startswith(begins[of.exit_code])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "\u2013"), (0.0001, "< 1 ms"), (0.0123, "12 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (9.994, "9.99 s"), (9.996, "10.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (125.2, "2 min 5 s")],
)  # fmt: skip
def test_a_duration_has_three_digits(seconds, expected):
    assert duration(seconds) == expected


COMPARED = {"every": EVERY_STATUS, "all <pass>": ALL_PASS, "hostile": HOSTILE_REPORT}


class TestComparison:
    def test_the_terminal_has_a_column_for_each_store_and_its_verdict(self):
        text = printed(lambda console: print_comparison(COMPARED, console), width=120)
        rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
        assert rows["CORE"].count("earned") == 3
        assert rows["CORE"].count("✓ earned") == 1
        assert "all <pass>: Conforms: all 3 cases passed." in text
        assert not [character for character in text if ord(character) < 32 and character != "\n"]

    def test_the_page_shows_every_case_of_every_store(self):
        shown = Page(render_comparison(COMPARED, {"every": "a%20b/every.html"}))
        for compared in COMPARED.values():
            for of_case in made_visible(compared).results:
                assert of_case.id in shown.text
        assert "saw `x`" in shown.text
        assert "✗ FAIL" in shown.text
        assert "not run" in shown.text
        assert shown.links == ["a%20b/every.html"] * (len(shown.links))
        assert shown.links

    def test_the_worst_report_decides_the_exit_code(self):
        inconclusive = report(result(status=Status.INCONCLUSIVE))
        failed = report(result(status=Status.FAIL))
        assert worst_exit_code({"a": ALL_PASS}) == 0
        assert worst_exit_code({"a": ALL_PASS, "b": inconclusive}) == 2
        assert worst_exit_code({"a": inconclusive, "b": failed}) == 1
        assert worst_exit_code({"a": failed, "b": EVERY_STATUS}) == 3
