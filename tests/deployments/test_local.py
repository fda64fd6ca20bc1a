import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import yaml
from prefect.client import orchestration
from prefect.settings import Settings
from typer.testing import CliRunner

from customdiff_core import settings as core_settings
from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY
from deployments import doctor, local, processes, registration, stack, watch
from deployments.files import make_server
from deployments.processes import Record, Service, flow_runs, require_free, stop

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service("sleeper", SLEEP, tmp_path)
    yield one
    one.stop()


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process that is none of the stack's business."""
    with subprocess.Popen(SLEEP) as process:
        yield psutil.Process(process.pid)
        process.kill()


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_proxy_of_the_network_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.chdir(Path.cwd())  # set back at the end
    for name in ("PREFECT_HOME", "GOMP_SPINCOUNT", "NO_ALBUMENTATIONS_UPDATE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    local.settle()
    assert os.environ["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert os.environ["no_proxy"] == "127.0.0.1,localhost"
    local.settle()
    assert os.environ["no_proxy"] == "127.0.0.1,localhost"


def test_a_server_that_ends_while_it_is_asked_is_one_red_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(local, "settle", lambda: None)
    monkeypatch.setattr(local, "app", gone)
    with pytest.raises(SystemExit) as ended:
        local.main()
    assert ended.value.code == 1
    assert "server: found no answer (ConnectError: All" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CUSTOMDIFF_BENCHMARK_WORKERS", "0", "CUSTOMDIFF_BENCHMARK_WORKERS: found '0' .*greater than or equal to 1"),
        ("CUSTOMDIFF_FILES_URL", "http://127.0.0.1:99999", "found http://127.0.0.1:99999, need a port of this machine"),
    ],
)
def test_a_variable_that_cannot_be_is_said(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = SimpleNamespace(host="127.0.0.1", port=4200)
    prefect = SimpleNamespace(
        home=Path(), api=SimpleNamespace(url="http://127.0.0.1:4200/api"), server=SimpleNamespace(api=api)
    )
    monkeypatch.setattr(stack, "get_current_settings", lambda: prefect)
    monkeypatch.setenv(name, value)
    with pytest.raises(ServiceError, match=words):
        stack.from_settings()


def test_a_check_that_breaks_is_an_error_and_not_the_end_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Check:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "disk", broken)
    monkeypatch.setattr(doctor, "services", list)
    found = {one.what: one for one in doctor.examine()}
    assert found["broken"].level == "error"
    assert found["broken"].found == "RuntimeError: no such thing"
    assert found["Python"].level == "ok"


# --- processes ---


def test_a_service_runs_apart_from_its_starter_and_is_found_again(service: Service) -> None:
    service.start()

    process = Service(service.name, service.command, service.home).process()
    assert process is not None
    assert os.getsid(process.pid) == process.pid
    assert service.is_current()
    assert service.stop()
    assert not process.is_running()
    assert not service.pid_file.exists()


def test_stopping_a_service_stops_what_it_started_in_other_sessions(tmp_path: Path) -> None:
    code = f"import subprocess, time; subprocess.Popen({SLEEP!r}, start_new_session=True); time.sleep(60)"
    service = Service("parent", (sys.executable, "-c", code), tmp_path)
    service.start()
    process = service.process()
    assert process is not None
    children = _until(process.children)

    service.stop()

    assert not any(child.is_running() for child in children)


def test_a_service_that_ignores_its_end_is_ended(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); time.sleep(60)"
    with subprocess.Popen((sys.executable, "-c", code), cwd=tmp_path) as process:
        _until((tmp_path / "deaf").exists)
        stop([psutil.Process(process.pid)], seconds=0.2)
        assert not psutil.pid_exists(process.pid)


def test_a_recycled_number_is_not_ours_and_is_not_stopped(service: Service, bystander: psutil.Process) -> None:
    service.pid_file.parent.mkdir(parents=True)
    record = Record(pid=bystander.pid, started=bystander.create_time() - 3600, settings=service.settings)
    service.pid_file.write_text(record.model_dump_json())

    assert service.process() is None
    assert not service.stop()
    assert bystander.is_running()
    assert not service.pid_file.exists()


def test_a_clock_that_is_set_makes_no_stranger_of_a_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's start times move with it: a suspended machine's stack could no longer be stopped."""
    service.start()
    record = Record.model_validate_json(service.pid_file.read_bytes())
    moved = record.model_copy(update={"started": record.started - 3600})
    service.pid_file.write_text(moved.model_dump_json())
    assert service.process() is not None

    monkeypatch.setattr(processes, "birth", lambda pid: "another boot 1")  # and the number is another's by now
    assert service.process() is None


def test_a_record_of_before_births_and_a_system_without_them_go_by_the_start_time(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    service.start()
    record = Record.model_validate_json(service.pid_file.read_bytes())
    assert record.birth == ""
    assert service.process() is not None
    monkeypatch.undo()
    service.pid_file.write_text(record.model_dump_json(exclude={"birth"}))
    assert service.process() is not None
    service.pid_file.write_text(record.model_copy(update={"started": 1.0}).model_dump_json(exclude={"birth"}))
    assert service.process() is None
    service.pid_file.write_text(record.model_dump_json())


def test_a_birth_is_read_past_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "sys" / "kernel" / "random" / "boot_id"
    for path, text in (
        (boot, "b00t\n"),
        (tmp_path / "7" / "stat", f"7 (a) (b c) S {' '.join(map(str, range(4, 40)))}\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert processes.birth(7) == "b00t 22"
    assert processes.birth(8) == ""


@pytest.mark.parametrize("content", ["", "123", '{"pid": 2147483646, "started": 1.0, "settings": ""}'])
def test_a_pid_file_that_says_nothing_stops_nothing(service: Service, content: str) -> None:
    service.pid_file.parent.mkdir(parents=True)
    service.pid_file.write_text(content)
    assert service.process() is None
    assert not service.stop()


def test_a_changed_environment_or_command_asks_for_a_new_process(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    assert service.is_current()
    assert not Service(service.name, (*SLEEP, "more"), service.home).is_current()
    with monkeypatch.context() as patch:
        patch.setenv("CUSTOMDIFF_STORE", "/elsewhere")
        assert not service.is_current()
    assert service.is_current()


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements.lock"])
def test_changed_settings_of_prefect_or_versions_ask_for_a_new_process(
    service: Service, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a server goes on with what a newer checkout has mended."""
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(processes, "REPOSITORY", tmp_path)
    service.start()
    assert service.is_current()
    text = (tmp_path / changed).read_text()
    (tmp_path / changed).write_text(
        text.replace('server.api.host = "127.0.0.1"', 'server.api.host = "::1"') + "\n# more\n"
    )
    assert not service.is_current()


def test_a_service_of_other_settings_is_replaced_but_not_while_runs_compute(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    monkeypatch.setenv("CUSTOMDIFF_STORE", "/elsewhere")
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": "one", "PREFECT_HOME": str(service.home)}
    with subprocess.Popen(SLEEP, env=environment) as process:
        _until(lambda: list(flow_runs(service.home)))
        with pytest.raises(
            ServiceError, match=r"found it started with other variables .*, and 1 runs computing \(one\)"
        ):
            stack._must_start(service, lambda: True, lambda text: None)
        assert service.process() is not None
        process.kill()
    said: list[str] = []
    assert stack._must_start(service, lambda: True, said.append)
    assert said == [f"replacing the {service.name}: its settings changed"]
    assert service.process() is None


def test_a_service_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    service = Service("server", (sys.executable, "-c", "raise SystemExit('no such database')"), tmp_path)
    service.start()
    with pytest.raises(
        ServiceError, match=r"server: found it ended at once \(no such database\), need it running; read"
    ):
        service.wait(lambda: False, 10)


def test_a_service_that_never_answers_is_told_with_its_log(service: Service) -> None:
    service.start()
    with pytest.raises(ServiceError, match=r"sleeper: found no answer within 0 s, need it ready; read .*sleeper\.log"):
        service.wait(lambda: False, 0.1)


def test_flow_runs_are_those_of_this_stack_only(tmp_path: Path) -> None:
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": "one", "PREFECT_HOME": str(tmp_path)}
    with subprocess.Popen(SLEEP, env=environment) as process:
        found = _until(lambda: list(flow_runs(tmp_path)))
        assert found == [("one", psutil.Process(process.pid))]
        assert list(flow_runs(tmp_path / "other")) == []
        process.kill()


# --- ports and settings ---


def test_a_taken_port_is_told_with_its_holder_and_another_way() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with serving(server) as port, pytest.raises(ServiceError) as caught:
        require_free(f"http://127.0.0.1:{port}", need="the server", remedy="set PREFECT_SERVER_API_PORT")
    text = str(caught.value)
    assert text.startswith(f"port {port}: found ")
    assert f"(pid {os.getpid()}: " in text
    assert text.endswith(
        "need it free for the server; stop that process, or choose another port: set PREFECT_SERVER_API_PORT"
    )


def test_a_free_port_is_fine(free_port: int) -> None:
    require_free(f"http://127.0.0.1:{free_port}", need="the server", remedy="")


def test_up_stops_at_a_port_that_another_program_holds(tmp_path: Path) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)) as port:
        done = _cli("up", tmp_path, port)
        assert done.returncode == 1
        assert done.stderr.startswith(f"port {port}: found ")
        assert "set PREFECT_SERVER_API_PORT and PREFECT_API_URL" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "run" / "server.json").exists()


def test_a_server_port_and_an_address_that_disagree_are_told(tmp_path: Path, free_port: int) -> None:
    done = _cli("up", tmp_path, free_port, PREFECT_API_URL="http://127.0.0.1:1/api")
    assert done.returncode == 1
    assert f"found http://127.0.0.1:1/api, need http://127.0.0.1:{free_port}/api" in done.stderr


def test_a_run_without_a_server_says_what_to_do(tmp_path: Path, free_port: int) -> None:
    done = _cli("run", tmp_path, free_port)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"server: found no answer at http://127.0.0.1:{free_port}/api, need it running; run `make up`"
    )


def test_a_run_without_a_worker_says_what_to_do(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "_answers", lambda url, status: True)
    monkeypatch.setattr(stack.Stack, "online_workers", lambda self, client: [])
    idle = Service("any", SLEEP, tmp_path)
    one = stack.Stack(tmp_path, f"http://127.0.0.1:{free_port}", "http://127.0.0.1:1", idle, idle, idle)
    with pytest.raises(ServiceError, match="worker: found none online for pool local-process, need one; run `make up`"):
        one.require_worker()


def test_a_run_in_a_pool_that_is_paused_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(read_work_pool=lambda name: SimpleNamespace(is_paused=name == "local-process"))
    monkeypatch.setattr(stack, "_answers", lambda url, status: True)
    monkeypatch.setattr(stack.Stack, "online_workers", lambda self, client: ["local"])
    monkeypatch.setattr(stack, "get_client", lambda sync_client: nullcontext(pool))
    one = idle_stack(tmp_path)
    with pytest.raises(
        ServiceError, match="pool local-process: found it paused, need it to take runs; resume it in the UI"
    ):
        one.require_worker()


def idle_stack(tmp_path: Path) -> stack.Stack:
    idle = Service("any", SLEEP, tmp_path)
    return stack.Stack(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:1", idle, idle, idle)


def test_nights_that_a_sleeping_machine_missed_are_dropped_where_the_worker_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(stack, "_must_start", lambda *_: False)
    monkeypatch.setattr(stack, "bury", lambda *_: called.append("bury"))
    monkeypatch.setattr(stack, "drop_missed", lambda *_: called.append("drop_missed"))
    idle_stack(tmp_path)._work(None, print)  # pyright: ignore[reportArgumentType]
    assert called == ["drop_missed"]


def test_a_run_does_not_wait_behind_nights_that_were_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def start(*_: object) -> None:
        called.append("start")
        raise ServiceError("enough")

    monkeypatch.setattr(stack, "from_settings", lambda: idle_stack(tmp_path))
    monkeypatch.setattr(stack.Stack, "require_worker", lambda self: None)
    monkeypatch.setattr(orchestration, "get_client", lambda sync_client: nullcontext())
    monkeypatch.setattr(registration, "drop_missed", lambda *_: called.append("drop_missed"))
    monkeypatch.setattr(watch, "start", start)
    with pytest.raises(ServiceError, match="enough"):
        local.run()
    assert called == ["drop_missed", "start"]


def test_a_server_of_others_is_told_what_prefect_yaml_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's set-up, so that what somebody paused stays paused there too."""
    called: list[str] = []
    monkeypatch.setattr(orchestration, "get_client", lambda sync_client: nullcontext())
    monkeypatch.setattr(registration, "prepare", lambda client: called.append("prepare"))
    monkeypatch.setattr(registration, "deploy", lambda client, log, say: called.append(log.name))
    assert CliRunner().invoke(local.app, ["register"]).exit_code == 0
    assert called == ["prepare", "deploy.log"]
    compose = yaml.safe_load((REPOSITORY / "deployments" / "compose.yaml").read_text())
    assert compose["services"]["set-up"]["command"] == ["python", "-m", "deployments.local", "register"]


def test_containers_see_the_concepts_of_the_checkout_and_may_be_given_leave_to_fetch_weights() -> None:
    compose = yaml.safe_load((REPOSITORY / "deployments" / "compose.yaml").read_text())
    for name in ("set-up", "worker"):
        service = compose["services"][name]
        assert "../data/concepts:/app/data/concepts:ro" in service["volumes"]
        assert service["environment"]["CUSTOMDIFF_ALLOW_DOWNLOAD"] == "${CUSTOMDIFF_ALLOW_DOWNLOAD:-false}"


def test_a_cluster_serves_the_reports_where_the_uis_links_lead() -> None:
    documents = yaml.safe_load_all((REPOSITORY / "deployments" / "kubernetes-worker.yaml").read_text())
    worker, files = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    root, port = (files["command"][files["command"].index(name) + 1] for name in ("--root", "--port"))
    assert core_settings.Settings().files_url.endswith(f":{port}")
    assert root in [one["mountPath"] for one in worker["volumeMounts"] if one["name"] == "store"]
    assert root in [one["mountPath"] for one in files["volumeMounts"]]


@pytest.mark.parametrize("limit", ["0", "many"])
def test_a_worker_limit_that_is_no_number_is_told(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMDIFF_WORKER_LIMIT", limit)
    with pytest.raises(ServiceError, match=f"CUSTOMDIFF_WORKER_LIMIT: found '{limit}', need 1 or more"):
        stack.worker_limit()


def test_the_servers_database_keeps_the_runs_of_half_a_year() -> None:
    vacuum = Settings().server.services.db_vacuum
    assert vacuum.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert vacuum.retention_period == timedelta(days=180)


# --- the file server ---


@pytest.fixture
def files(tmp_path: Path) -> Iterator[int]:
    """A served store with one report, and things that must stay inside."""
    store = tmp_path / "store"
    report = store / "report" / "abc"
    report.mkdir(parents=True)
    (report / "report.html").write_text("<p>teal cät</p>", encoding="utf-8")
    (report / "rows.parquet").write_bytes(b"PAR1")
    (store / ".secret").write_text("secret")
    (store / "report" / ".abc.lock").write_text("secret")
    (store / "report" / "abc.lock").write_text("secret")
    (tmp_path / "outside").write_text("secret")
    (store / "link").symlink_to(tmp_path / "outside")
    with serving(make_server(store, 0)) as port:
        yield port


def test_a_report_is_served_as_a_page_that_loads_nothing_from_elsewhere(files: int) -> None:
    answer, body = _ask(files, "/report/abc/report.html")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert body.decode() == "<p>teal cät</p>"


def test_other_files_are_served_as_bytes(files: int) -> None:
    answer, body = _ask(files, "/report/abc/rows.parquet")
    assert (answer.headers["Content-Type"], body) == ("application/octet-stream", b"PAR1")


def test_head_sends_the_size_alone(files: int) -> None:
    answer, body = _ask(files, "/report/abc/report.html", method="HEAD")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, "16", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/report",
        "/report/abc/",
        "/.secret",
        "/report/.abc.lock",
        "/report/abc.lock",
        "/../outside",
        "/report/../../outside",
        "/%2e%2e/outside",
        "/report/%2e%2e%2f%2e%2e%2foutside",
        "//outside",
        "/link",
        "/report/abc/none.html",
        "/report/abc/report.html%00",
    ],
)
def test_listings_hidden_files_and_the_outside_are_not_found(files: int, path: str) -> None:
    answer, body = _ask(files, path)
    assert answer.status == 404
    assert b"secret" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(files: int, method: str) -> None:
    answer, _ = _ask(files, "/report/abc/report.html", method=method)
    assert answer.status == 501


def test_a_page_under_another_name_may_not_read(files: int) -> None:
    for host in (f"evil.example:{files}", "[::1"):
        answer, _ = _ask(files, "/report/abc/report.html", host=host)
        assert answer.status == 403


# --- doctor ---


def test_doctor_reports_missing_weights_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMDIFF_DATA", str(tmp_path))
    check = doctor.model()
    assert check.level == "error"
    assert f"found no folder {tmp_path / 'models' / 'openmoji' / 'openmoji-sd'}" in check.found
    assert "check" in check.remedy


def test_doctor_says_that_torch_does_not_see_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path / "none")
    assert doctor.device().level == "ok"
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path)  # the driver is there
    assert (doctor.device().level, "update its driver" in doctor.device().remedy) == ("warning", True)


def test_doctor_reports_versions_that_are_not_the_locked_ones(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"# a comment\npsutil==0.1\npytest=={metadata.version('pytest')}\nno-such-package==1.0\n"
        "pywin32==1 ; sys_platform == 'win32'\n"
    )
    check = doctor.lock(lock)
    assert check.level == "error"
    assert check.found == f"psutil {metadata.version('psutil')}, no no-such-package"


def test_the_lock_leaves_the_backport_out_and_names_no_index() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert "\ndataclasses==" not in text
    assert "://" not in text


def test_doctor_reports_an_installed_backport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.6")
    assert doctor.backport().level == "error"


def test_doctor_ends_with_1_when_something_essential_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        doctor.Check("disk", "warning", "1 GB [free]", "free some"),
        doctor.Check("torch", "error", "none", "install"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    result = CliRunner().invoke(local.app, ["doctor"])
    assert result.exit_code == 1
    assert "1 GB [free]" in result.output
    monkeypatch.setattr(doctor, "examine", lambda: checks[:1])
    assert CliRunner().invoke(local.app, ["doctor"]).exit_code == 0


# --- helpers ---


def _cli(command: str, home: Path, port: int, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    return subprocess.run(
        (sys.executable, "-m", "deployments.local", command),
        cwd=REPOSITORY,
        env=os.environ | settings | environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def _ask(
    port: int, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def _until(probe, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
