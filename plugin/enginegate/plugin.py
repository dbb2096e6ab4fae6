"""What every pytest run loads: nothing is added to a run that does not use it.

Options exist where one of them is given, or help is asked for. Fixtures and the hooks of a run
(`enginegate.gate`) exist where the root's pyproject.toml has a table `[tool.enginegate]`, in the
shipped suite, and where `pytest_plugins` names `enginegate.fixtures`.
"""

import contextlib
import importlib
import os
import shlex
from collections.abc import Generator

import pytest

_FIXTURES = "enginegate.fixtures"
_ADDED = "PYTEST_ADDOPTS"  # read by pytest before its arguments


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Add the options where they are used: `--precision` after all others had their turn."""
    asked = early_config.known_args_namespace.help
    used = asked or any(word.startswith(("--gate-", "--precision")) for word in args)
    if not used:
        return (yield)
    from enginegate.config import add_options, add_precision

    add_options(parser)
    _mark_values(early_config, parser, args)
    result = yield
    add_precision(parser)
    return result


def _mark_values(config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Write `--gate-x VALUE` as `--gate-x=VALUE`, so that no value is taken for a test's path.

    Pytest looks for its root folder before it knows the options of plugins, and takes a value
    that is an existing path for one of tests. Then the run is started once more, as it was meant.
    """
    from enginegate.config import join_values

    spoken = shlex.split(os.environ.get(_ADDED, ""))
    given = config.invocation_params.args
    joined = [*join_values(spoken), *join_values(given)]
    values = [word.partition("=")[2] for word in joined if word not in {*spoken, *given}]
    if any(os.path.lexists(value) for value in values):
        os.environ[_ADDED] = shlex.join(join_values(spoken))
        raise SystemExit(pytest.main(join_values(given), config.invocation_params.plugins))
    args[:] = join_values(args)
    config.known_args_namespace.file_or_dir = parser.parse_known_args(args).file_or_dir


def pytest_configure(config: pytest.Config) -> None:
    """Bring the fixtures to a project that has opted in; prepare a session if one is asked for."""
    asked = config.getoption("enginegate_precision", None)
    if not asked and not _is_named(config):
        return
    from enginegate.config import opted_in
    from enginegate.errors import EngineGateError
    from enginegate.files import for_terminal
    from enginegate.gate import start

    try:
        if opted_in(config):
            _bring(config.pluginmanager, _FIXTURES)
        if asked:
            start(config)
    except EngineGateError as error:
        raise pytest.UsageError(for_terminal(str(error))) from error


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Have the machines of a fleet run what was asked for, with `--gate-fleet`."""
    asked = config.getoption("enginegate_fleet", None)
    shown = (config.option.help, config.option.version, config.option.collectonly)
    if not asked or any(shown):
        return None
    from enginegate.errors import EngineGateError
    from enginegate.files import for_terminal
    from enginegate.gate import start_fleet

    try:
        return start_fleet(config)
    except EngineGateError as error:
        raise pytest.UsageError(for_terminal(str(error))) from error


def _is_named(config: pytest.Config) -> bool:
    """The root folder's pyproject.toml may have a table of ours; it is not parsed for others."""
    with contextlib.suppress(OSError):
        return b"enginegate" in (config.rootpath / "pyproject.toml").read_bytes()
    return False


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Bring the hooks of a run with the fixtures, whichever way these came."""
    if getattr(plugin, "__name__", "") == _FIXTURES:
        _bring(manager, "enginegate.gate")


def _bring(manager: pytest.PytestPluginManager, name: str) -> None:
    """Register one of our modules, which a conftest.py may have imported before."""
    if not manager.has_plugin(name):
        manager.register(importlib.import_module(name), name)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a precision for which nothing could be judged."""
    used = session.config.getoption("enginegate_precision", None)
    if used and not session.config.pluginmanager.has_plugin(_FIXTURES):
        from enginegate.files import for_terminal

        said = (
            f"--precision {','.join(used)} judges nothing here: this project does not use "
            f"enginegate. Add a table [tool.enginegate] to {session.config.rootpath}"
            "/pyproject.toml, or run `pytest --pyargs enginegate.suite`"
        )
        raise pytest.UsageError(for_terminal(said))
