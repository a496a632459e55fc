"""python -m modelpress_operator"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from modelpress.api import plugins

from . import logs
from .aio import ConnectionSettingsError
from .execute import Render
from .process import serve
from .settings import Settings, SettingsError, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; 0 after SIGTERM, 1 when it failed and should be started again, 2 when it was told nonsense."""
    try:
        settings = load_settings(arguments)
        plugins.load()
    except (SettingsError, plugins.PluginError) as error:
        print(f"modelpress-operator: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    try:
        return asyncio.run(serve(settings, _render(settings)))
    except ConnectionSettingsError as error:
        print(f"modelpress-operator: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        ports = ", ".join(str(port) for port in sorted({settings.port, settings.probe_port, settings.progress_port}))
        print(f"modelpress-operator: cannot listen on ports {ports}: {error.strerror}", file=sys.stderr)
        return 2


def _render(settings: Settings) -> Render:
    from .allowed import Allowed
    from .render import RenderSettings, render_job

    chosen = RenderSettings(
        image=settings.runner_image,
        image_pull_policy=settings.runner_image_pull_policy,
        service_account=settings.runner_service_account,
        fs_group=settings.runner_fs_group,
        grace_seconds=settings.runner_grace_seconds,
        pod_template=settings.runner_pod_template,
        allowed=Allowed.model_validate(settings.runner_allowed or {}),
        progress_url=settings.progress_url,
        progress_audience=settings.progress_audience,
    )
    return lambda action, owner: render_job(action, owner, chosen)


if __name__ == "__main__":
    sys.exit(main())
