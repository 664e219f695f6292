"""Logs, traces and metrics of a process.

Logs: one JSON object per line on standard error, only ids, counts, codes and durations. Traces: OpenTelemetry, on
when an `OTEL_EXPORTER_OTLP_*ENDPOINT` (or `OTEL_TRACES_EXPORTER=console`) is set; otherwise no span is made and only
the W3C context is carried on, since a span costs 9 µs even when it is sampled out. Metrics: Prometheus.
"""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.util.types import AttributeValue

from contracts.ids import new_span_id, new_trace_id

_TRACEPARENT_LENGTH: Final = 55


def configure_logging(service: str, process: str, level: str, form: str) -> None:
    """Set up structlog and route the standard library's log records through it."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=True)
    )
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service, process=process)
    logging.basicConfig(handlers=[_Forward()], level=max(number, logging.WARNING), force=True)


class _Forward(logging.Handler):
    """Records of libraries: name and message only, so that no argument with a secret is formatted in full."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(structlog.get_logger(record.name), level)(record.getMessage()[:500], exc_info=record.exc_info)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The W3C trace context of one call."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header that carries it on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def read_traceparent(header: str) -> TraceContext | None:
    """The context of a `traceparent` header; None when it is absent or malformed (then a new trace begins)."""
    if len(header) < _TRACEPARENT_LENGTH or header[2] != "-" or header[35] != "-" or header[52] != "-":
        return None
    trace_id, span_id = header[3:35], header[36:52]
    if header[:2] == "ff" or not _is_lower_hex(header[:2] + trace_id + span_id + header[53:55]):
        return None
    if trace_id == "0" * 32 or span_id == "0" * 16:
        return None
    return TraceContext(trace_id, span_id, bool(int(header[53:55], 16) & 1))


def new_trace() -> TraceContext:
    """A new trace for a call that brought none; sampled when spans are exported, the sampler decides then."""
    return TraceContext(new_trace_id(), new_span_id(), sampled=False)


class Tracing:
    """One span per call and service, or none at all when nothing exports them."""

    def __init__(self, service: str) -> None:
        self.enabled = bool(
            os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            or os.environ.get("OTEL_TRACES_EXPORTER") == "console"
        )
        self._provider: TracerProvider | None = None
        if self.enabled:
            self._provider = _provider(service)
            trace.set_tracer_provider(self._provider)
        self._tracer = trace.get_tracer("aigne-hub")

    def start(
        self, name: str, parent: TraceContext | None, kind: SpanKind, attributes: dict[str, AttributeValue]
    ) -> "CallSpan":
        """Begin a span under a remote parent; without an exporter only the context goes on."""
        if not self.enabled:
            return CallSpan(None, parent or new_trace())
        context = None
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(remote))
        span = self._tracer.start_span(name, context, kind, attributes)
        own = span.get_span_context()
        return CallSpan(
            span, TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", bool(own.trace_flags.sampled))
        )

    def instrument(self, fastapi_app: Any = None) -> None:
        """Spans for every SQL statement and, given an application, one for each of its requests."""
        from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor  # noqa: PLC0415 - only where it is on

        AsyncPGInstrumentor().instrument(tracer_provider=self._provider)  # type: ignore[no-untyped-call]
        if fastapi_app is not None:
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415

            FastAPIInstrumentor.instrument_app(
                fastapi_app, tracer_provider=self._provider, exclude_spans=["send", "receive"], excluded_urls="healthz"
            )

    def shutdown(self) -> None:
        """Export what is left; returns after the exporter's own deadline."""
        if self._provider is not None:
            self._provider.shutdown()


@dataclass(slots=True)
class CallSpan:
    """A span, or only its context."""

    span: trace.Span | None
    context: TraceContext

    def end(self, attributes: dict[str, AttributeValue] | None = None, error: str = "") -> None:
        """Close the span; `error` is an error code."""
        if self.span is None:
            return
        if attributes:
            self.span.set_attributes(attributes)
        if error:
            self.span.set_status(trace.StatusCode.ERROR, error)
            self.span.set_attribute("error.type", error)
        self.span.end()


def _provider(service: str) -> TracerProvider:
    provider = TracerProvider(resource=Resource.create({"service.name": f"aigne-hub-{service}"}))
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - 60 ms at start
            OTLPSpanExporter,
        )

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_lower_hex(text: str) -> bool:
    return all(c in "0123456789abcdef" for c in text)
