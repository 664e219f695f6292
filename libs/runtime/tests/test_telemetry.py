"""Trace context on its way through, and logs without secrets."""

import io
import json
import logging
import sys

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind

from runtime import telemetry
from runtime.telemetry import TraceContext, Tracing, read_traceparent

HEX = "0123456789abcdef"
TRACE_IDS = st.text(HEX, min_size=32, max_size=32).filter(lambda text: text.strip("0") != "")
SPAN_IDS = st.text(HEX, min_size=16, max_size=16).filter(lambda text: text.strip("0") != "")
GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@given(TRACE_IDS, SPAN_IDS, st.booleans())
def test_context_survives_its_header(trace_id: str, span_id: str, sampled: bool) -> None:
    context = TraceContext(trace_id, span_id, sampled)
    assert read_traceparent(context.traceparent) == context


def test_header_of_a_later_version_is_read_as_far_as_we_know_it() -> None:
    assert read_traceparent("cc" + GOOD[2:] + "-what-comes-later") == read_traceparent(GOOD)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        GOOD[:-1],
        GOOD.upper(),
        "ff" + GOOD[2:],
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        GOOD.replace("b7ad6b7169203331", "0" * 16),
        GOOD.replace("-", "_"),
        GOOD.replace("0af7", "0ag7"),
        GOOD[:-2] + "0x",
    ],
)
def test_malformed_header_begins_a_new_trace(header: str) -> None:
    assert read_traceparent(header) is None


@given(st.text(max_size=80))
def test_any_header_is_a_context_or_none(header: str) -> None:
    context = read_traceparent(header)
    if context is not None:
        assert len(context.trace_id) == 32
        assert len(context.span_id) == 16


def test_without_an_exporter_only_the_context_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    tracing = Tracing("test")
    parent = read_traceparent(GOOD)
    assert tracing.start("call", parent, SpanKind.SERVER, {}).context == parent
    fresh = tracing.start("call", None, SpanKind.SERVER, {}).context
    assert read_traceparent(fresh.traceparent) == fresh


def test_log_line_is_one_json_object_with_service_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    try:
        telemetry.configure_logging("metering", "metering-1", "info", "json")
        structlog.get_logger("x").info("settled", calls=3)
        structlog.get_logger("x").debug("not shown")
        logging.getLogger("library").warning("a library's %s", "word")
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
        logging.getLogger().handlers.clear()
    assert [line["event"] for line in lines] == ["settled", "a library's word"]
    assert all(line["service"] == "metering" and line["process"] == "metering-1" for line in lines)
    assert lines[0]["calls"] == 3
