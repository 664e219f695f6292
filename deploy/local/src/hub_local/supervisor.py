"""Everything on one machine: servers, migrations, streams, services; watched until it is told to stop."""

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

import asyncpg
import nats
import nats.errors
import structlog

from contracts.permissions import GATEWAY, OPERATOR, PROVISIONER
from hub_local import credentials, demo_payment_kit, first_key, migrate, services, state, welcome
from hub_local.console import Console
from hub_local.credentials import ADMIN, DATABASE, Credentials
from hub_local.folder import DataFolder, TakenError, is_free
from hub_local.keeper import CONFIGURATION_ERROR, Keeper, StartError
from hub_local.servers import Ports, ServerError, Servers
from hub_local.settings import LocalSettings
from runtime.migrations import MigrationError
from runtime.provision import provision, watchdog

TAKEN: Final = 75
"""Exit code when the folder or a port belongs to somebody else."""
_SERVERS_WITHIN_S: Final = 60.0
_SERVICES_WITHIN_S: Final = 60.0
_WELCOME_WITHIN_S: Final = 15.0
_KILLED: Final = 130


class Supervisor:
    """One run of the embedded hub."""

    def __init__(self, settings: LocalSettings, environment: Mapping[str, str], console: Console) -> None:
        self._settings = settings
        self._environment = environment
        self._console = console
        self._folder = DataFolder(settings.data_dir)
        self._keepers: dict[str, Keeper] = {}
        self._services: dict[str, list[Keeper]] = {name: [] for name in services.PACKAGES}
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._killed = False
        self._failed = False
        self._state: state.HubState | None = None
        self._began = time.monotonic()

    async def run(self) -> int:
        """Come up, stay up, drain.

        Returns:
            The exit code: 0 after a drain, 75 when folder or port are taken, 78 for wrong settings, 130 when killed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._folder.lock()
        except TakenError as error:
            self._console.say(str(error), error=True)
            return TAKEN
        try:
            return await self._run_locked()
        finally:
            self._folder.unlock()

    async def _run_locked(self) -> int:
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        code = 0
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and (error := starting.exception()) is not None:
            code = self._explain(error)
        else:
            await stopping
        starting.cancel()
        stopping.cancel()
        await self._drain()
        return _KILLED if self._killed else code or int(self._failed)

    def _explain(self, error: BaseException) -> int:
        if not isinstance(
            error, TakenError | StartError | ServerError | MigrationError | asyncpg.PostgresError | OSError
        ):
            raise error
        self._console.say(str(error), error=True)
        if isinstance(error, TakenError):
            return TAKEN
        return CONFIGURATION_ERROR if "refuses its settings" in str(error) else 1

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            return
        self._killed = True
        for keeper in self._keepers.values():
            keeper.kill()

    async def _start(self) -> None:
        http_ports = self._http_ports()
        names = services.names(self._settings)
        chosen = self._folder.ports(["postgres", "nats", "nats_http", *(f"ops:{name}" for name in names)])
        ports = Ports(chosen["postgres"], chosen["nats"], chosen["nats_http"])
        secrets = credentials.obtain(self._folder)
        instances = services.instances(self._settings, {name: chosen[f"ops:{name}"] for name in names}, http_ports)
        self._state = state.HubState.of(self._settings, secrets, ports, instances)
        await self._start_servers(ports, secrets)
        await asyncio.gather(self._migrate(secrets, ports), self._provision(secrets.nats_url(PROVISIONER, ports.nats)))
        if self._settings.payment_kit == "demo":
            await self._start_payment_kit(http_ports[0])
        await self._start_services(instances, secrets, ports)

    async def _start_payment_kit(self, hub_port: int) -> None:
        """The demonstration's own, beside the hub; metering alone is told of it."""
        port = self._folder.ports(["payment_kit"])["payment_kit"]
        if self._state is not None:
            self._state.ops[demo_payment_kit.NAME] = f"http://127.0.0.1:{port}"
        told = demo_payment_kit.settings_for_metering(self._folder, port)
        self._environment = {**self._environment, **told}
        hub = f"http://127.0.0.1:{hub_port}{self._environment.get('HUB_MOUNT_PATH', '')}"
        program = demo_payment_kit.program(self._folder, port, hub, self._environment, told["HUB_PAYMENT_KIT_APP_KEY"])
        self._keep(Keeper(program, self._console, self._write_state))
        await self._report_ready(self._keepers[demo_payment_kit.NAME])

    def _http_ports(self) -> list[int]:
        """One port per gateway.

        Raises:
            TakenError: somebody else listens on one of them.
        """
        first, count, host = self._settings.port, self._settings.gateways, self._settings.host
        if first == 0:
            names = [f"http:{number}" for number in range(1, count + 1)]
            return list(self._folder.ports(names).values())
        for port in range(first, first + count):
            if not is_free(host, port):
                raise TakenError(f"port {port} on {host} is taken by another program; set HUB_PORT to another one")
        return list(range(first, first + count))

    async def _start_servers(self, ports: Ports, secrets: Credentials) -> None:
        servers = Servers(
            self._folder, ports, secrets, fast=self._settings.db_fast, sync_always=self._settings.nats_sync_always
        )
        if servers.is_new:
            self._console.say(f"first start: making the database in {self._folder.root}")
        await servers.prepare()
        for program in (servers.nats(), servers.postgres()):
            self._keep(Keeper(program, self._console, self._write_state))
        await asyncio.gather(*(self._keepers[name].ready(_SERVERS_WITHIN_S) for name in ("nats", "postgres")))
        self._console.say(f"NATS and PostgreSQL are up ({self._elapsed()})")

    async def _migrate(self, secrets: Credentials, ports: Ports) -> None:
        applied = await migrate.prepare(secrets.dsn(ADMIN, ports.postgres, "postgres"), secrets.postgres, DATABASE)
        for name in applied:
            self._console.say(f"migration {name} applied")

    async def _provision(self, url: str) -> None:
        _route_logs(self._console)
        back = asyncio.Event()

        async def reconnected() -> None:
            back.set()

        client = await nats.connect(
            url,
            name=PROVISIONER,
            inbox_prefix=f"_INBOX.{PROVISIONER}".encode(),
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            error_cb=_ignore_disconnects,
            reconnected_cb=reconnected,
        )
        stream = client.jetstream()
        await provision(stream, self._settings.kept_answers)
        self._run_along(watchdog(stream, kept_answers=self._settings.kept_answers, reconnected=back))

    async def _start_services(self, instances: list[services.Instance], secrets: Credentials, ports: Ports) -> None:
        given = self._environment.get("HUB_BOOTSTRAP_KEY")
        made = first_key.new_key() if given is None and first_key.is_due(self._folder) else None
        programs = [
            services.program(instance, self._settings, self._environment, secrets, ports, given or made)
            for instance in instances
        ]
        for instance, program in zip(instances, programs, strict=True):
            keeper = Keeper(
                program, self._console, self._write_state, services.armed(instance.service, self._environment)
            )
            self._services[instance.service].append(keeper)
            self._keep(keeper)
        await asyncio.gather(*(self._report_ready(self._keepers[program.name]) for program in programs))
        if first_key.is_due(self._folder) and self._is_welcome_due():
            url = secrets.nats_url(OPERATOR, ports.nats)
            if not await welcome.arrived(url, _WELCOME_WITHIN_S):
                self._console.say("the owner's welcome credits are still on their way", error=True)
        if made is not None:
            for keeper in self._services[GATEWAY]:
                left = {name: value for name, value in keeper.program.env.items() if name != "HUB_BOOTSTRAP_KEY"}
                keeper.use_from_now_on(replace(keeper.program, env=left))
        self._announce(instances, made)
        first_key.was_shown(self._folder)

    def _is_welcome_due(self) -> bool:
        if self._environment.get("HUB_BILLING") == "off":
            return False
        return self._environment.get("HUB_WELCOME_CREDITS", "100").strip("0.") != ""

    async def _report_ready(self, keeper: Keeper) -> None:
        await keeper.ready(_SERVICES_WITHIN_S)
        self._console.say(f"{keeper.name} is ready ({self._elapsed()})")

    def _announce(self, instances: list[services.Instance], made: str | None) -> None:
        host = "127.0.0.1" if self._settings.host in {"0.0.0.0", "::"} else self._settings.host
        port = next(instance.http_port for instance in instances if instance.service == GATEWAY)
        url = f"http://{host}:{port}"
        key = made or ("$HUB_BOOTSTRAP_KEY" if "HUB_BOOTSTRAP_KEY" in self._environment else "$HUB_KEY")
        lines = ["", f"AIGNE Hub is ready at {url}", ""]
        if made is not None:
            lines += [f"  Owner key, shown only this once:  {made}", ""]
        elif key == "$HUB_KEY":
            lines += ["  A new key:  hub keys create --owner", ""]
        lines += [
            f"  curl {url}/api/v2/chat/completions \\",
            f'    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\',
            """    -d '{"model": "demo/echo", "messages": [{"role": "user", "content": "Hello!"}]}'""",
            "",
        ]
        self._console.plain("\n".join(lines))

    def _keep(self, keeper: Keeper) -> None:
        self._keepers[keeper.name] = keeper
        self._run_along(keeper.run())

    def _run_along(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """A bug in the supervisor itself ends the hub in good order; nothing would restart the part otherwise."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._console.say(f"stopping after a bug: {type(error).__name__}: {error}", error=True)
            self._failed = True
            self._stop.set()

    def _write_state(self) -> None:
        if self._state is not None:
            rows = [state.ProcessState(k.name, k.pid, k.restarts) for k in self._keepers.values()]
            self._state.write(self._folder, rows)

    async def _drain(self) -> None:
        """Gateways first, so that open calls end; the servers last."""
        if self._keepers and not self._killed:
            self._console.say("stopping: open calls may end first; Ctrl-C again stops at once")
        for group in (
            *self._services.values(),
            *([self._keepers[n]] for n in (demo_payment_kit.NAME, "nats", "postgres") if n in self._keepers),
        ):
            await asyncio.gather(*(keeper.stop() for keeper in group))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.state.unlink(missing_ok=True)
        if self._keepers:
            self._console.say("stopped")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"


class _Relay:
    """Log records of our own libraries, as lines of the supervisor."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def msg(self, message: str) -> None:
        self._console.relay("hub", message)

    debug = info = warning = error = critical = msg


def _route_logs(console: Console) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: _Relay(console),
    )


async def _ignore_disconnects(error: Exception) -> None:
    """The keeper reports a NATS that ended; anything else is worth a line."""
    if not isinstance(error, OSError | nats.errors.Error):
        sys.stderr.write(f"nats: {type(error).__name__}\n")
