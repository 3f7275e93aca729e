"""The command `zimage`. Heavy imports sit inside the commands, so that help and mistakes answer at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve.cli_keys import keys
from serve.errors import ConfigError, ZImageError

app = typer.Typer(
    help="Serve Z-Image: from a prompt to a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(keys, name="keys")

CONFIG = Path("config/serve.yaml")


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def main() -> None:
    try:
        app()
    except ZImageError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"fix: {error.hint}", file=sys.stderr)
        sys.exit(1)


@app.command()
def doctor(
    config: Annotated[Path, typer.Option(help="The file that you start with.")] = CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="A list of {check, status, detail, fix}.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Start the real thing too: weights, a picture, stores, Ray.")
    ] = False,
) -> None:
    """Check this machine and a config file; exit code 1 when something would stop the start."""
    from serve.doctor import examine, render  # noqa: PLC0415

    findings = examine(config)
    if deep:
        from serve.deep import examine_deeply  # noqa: PLC0415

        findings += examine_deeply(config)
    typer.echo(render(findings, as_json=as_json))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def top(
    url: Annotated[str, typer.Option(help="Of the running service.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="ZIMAGE_API_KEY", help="API key, where access is on.")] = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="Jobs that are shown.")] = 20,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once: what the API tells, as JSON.")] = False,
) -> None:
    """Watch a running service: replicas, queue, rates. Ctrl-C ends it."""
    from serve.top import top as watch  # noqa: PLC0415

    try:
        watch(url, key, every_s=every, rows=rows, once=once, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit() from None


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="A hub id, ORG/NAME or ORG/NAME@REVISION.")],
    to: Annotated[Path | None, typer.Option(help="Make a whole copy in this folder instead of the cache.")] = None,
) -> None:
    """Fetch a model's weights; what was fetched before is kept, also half a file."""
    from serve.download import download as fetch  # noqa: PLC0415
    from serve.weights import HubId  # noqa: PLC0415

    hub_id = HubId.parse(model)
    if hub_id is None:
        raise ConfigError(f"{model!r} is not a hub id", hint="write ORG/NAME, such as Tongyi-MAI/Z-Image-Turbo")
    folder = fetch(hub_id, to)
    typer.echo(f"complete and verified: {folder}\nserve it with `model: {to.absolute() if to else hub_id}`")


@app.command()
def preset_pictures(
    url: Annotated[str, typer.Argument(help="Of a service that runs.")] = "http://127.0.0.1:8000",
    folder: Annotated[Path, typer.Option(help="Where they are written.")] = Path("config/pictures"),
    prompt: Annotated[str | None, typer.Option(help="What is drawn with each; default: one thing or another.")] = None,
    key: Annotated[str | None, typer.Option(envvar="ZIMAGE_KEY", help="An API key, where access is closed.")] = None,
) -> None:
    """Draw a small picture for each preset and style; `picture:` in the presets file names it."""
    from serve.preset_pictures import draw_pictures  # noqa: PLC0415

    for path in draw_pictures(url, folder, prompt, key):
        typer.echo(f"{path}: {path.stat().st_size} bytes")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    size: Annotated[str | None, typer.Option(help="WxH in pixels, multiples of 16.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**53 - 1, help="Default: a random one.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=50, help="Default: 8.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=20, help="Default: 0, none.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; needs --guidance.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to begin with: a PNG, JPEG or WebP file.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="What of it may change: transparent, else white; of its size.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="How much may change. Default: 0.6, with a mask 1.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA: of --config, a .safetensors file, a folder, or a hub id.")
    ] = None,
    adapter_scale: Annotated[float | None, typer.Option(min=-4, max=4, help="Its strength. Default: its own.")] = None,
    controlnet: Annotated[
        str | None, typer.Option(help="A ControlNet: of --config, a .safetensors file, a folder, or a hub id.")
    ] = None,
    control_image: Annotated[
        Path | None, typer.Option(help="The picture that it follows: a PNG, JPEG or WebP file.")
    ] = None,
    controlnet_scale: Annotated[float | None, typer.Option(min=0, max=2, help="How closely. Default: its own.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of the presets file.")] = None,
    style: Annotated[str | None, typer.Option(help="Of the presets file.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help=".png, .jpg or .webp")] = Path("out.png"),
    config: Annotated[
        Path | None, typer.Option(help="A server's config file: its model, adapters, ControlNets and presets are used.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="'embedded', a folder, a hub id, or a name in --config. Default: its first, else embedded."),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Default: auto, a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: 1.")] = None,
) -> None:
    """Draw one picture here and now, without a server."""
    from serve.generate import Wish  # noqa: PLC0415
    from serve.generate import generate as draw  # noqa: PLC0415
    from serve.generate_settings import settings_for  # noqa: PLC0415

    wish = Wish(
        prompt=prompt,
        size=size,
        seed=seed,
        steps=steps,
        guidance=guidance,
        negative_prompt=negative_prompt,
        image=image,
        mask=mask,
        strength=strength,
        adapter_scale=adapter_scale,
        control_image=control_image,
        controlnet_scale=controlnet_scale,
        preset=preset,
        style=style,
        output=output,
    )
    said = {"model": model, "device": device.value if device else None, "threads": threads}
    known = {key: value for key, value in said.items() if value is not None}
    chosen = settings_for(config, known, adapter, controlnet)
    draw(replace(wish, adapter=chosen.adapter, controlnet=chosen.controlnet), chosen.settings)


@app.command()
def webhook_secret(
    user: Annotated[str | None, typer.Option(help="This user's own, where there is access control.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Make one for `webhooks.secret`; nothing is stored.")] = False,
    config: Annotated[Path, typer.Option(help="The file that you start with.")] = CONFIG,
    data: Annotated[Path | None, typer.Option(help="The data folder, where you start with DATA=.")] = None,
) -> None:
    """Print what webhooks are signed with."""
    from serve.doctor import settings_of  # noqa: PLC0415
    from serve.messages import ANONYMOUS  # noqa: PLC0415
    from serve.webhooks.signing import new_secret, open_keys  # noqa: PLC0415

    if new:
        typer.echo(new_secret())
        return
    settings = settings_of(config)
    keys = open_keys(settings if data is None else settings.model_copy(update={"data": data}))
    typer.echo("\n".join(keys.of(user or ANONYMOUS)))


@app.command()
def version() -> None:
    """Say which versions are at work here, and on which device."""
    from serve.doctor import versions  # noqa: PLC0415

    for name, value in versions().items():
        typer.echo(f"{name:<12} {value}")


if __name__ == "__main__":
    main()
