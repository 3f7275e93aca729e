"""Checks what a config file says about numbers of replicas, where Ray Serve would take it and do something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serve.document import Document, Key, Problem

POLICY = "deployments.autoscaling:policy"
SCALED = ("TextEncoder", "Denoiser")
ONE = {"min_replicas": 1, "max_replicas": 1}
DELAYS = ("upscale_delay_s", "downscale_delay_s")


def check_scaling(document: Document, application: dict[str, Any], at: Key) -> Iterator[Problem]:
    policy = (application.get("autoscaling_policy") or {}).get("policy_function")
    if policy not in (None, POLICY):
        where = (*at, "autoscaling_policy", "policy_function")
        yield document.problem(where, f"is {policy!r}", f"it must be {POLICY}")
    for i, deployment in enumerate(application.get("deployments") or []):
        if isinstance(deployment, dict):
            yield from _check_deployment(document, deployment, (*at, "deployments", i), policy is not None)


def _check_deployment(document: Document, deployment: dict[str, Any], at: Key, by_backlog: bool) -> Iterator[Problem]:
    name, scaling = str(deployment.get("name")).partition("-")[0], deployment.get("autoscaling_config")
    if name == "Dispatcher":
        if deployment.get("num_replicas", 1) != 1:
            yield document.problem((*at, "num_replicas"), "there is one Dispatcher", "remove it")
        if by_backlog and scaling is None:
            yield document.problem(at, "the policy hears nothing of it", f"give it autoscaling_config: {_flow(ONE)}")
        if isinstance(scaling, dict) and (scaling.get("max_replicas", 1) != 1 or scaling.get("min_replicas") == 0):
            yield document.problem((*at, "autoscaling_config"), "there is one Dispatcher", f"make it {_flow(ONE)}")
    if name not in SCALED or not isinstance(scaling, dict):
        return
    if not by_backlog:
        hint = f"give the application autoscaling_policy: {{policy_function: {POLICY}}}"
        yield document.problem((*at, "autoscaling_config"), "needs the policy of this project", hint)
    for delay in DELAYS:
        if scaling.get(delay) != 0:
            hint = "set it to 0: args.autoscaling says how long"
            where = (*at, "autoscaling_config", *([delay] if delay in scaling else []))
            yield document.problem(where, f"{delay} would be added to the policy's own", hint)
    if scaling.get("min_replicas") == 0 and not scaling.get("initial_replicas"):
        hint = "set initial_replicas: 1"
        yield document.problem((*at, "autoscaling_config"), "would never start, and so never be measured", hint)


def _flow(mapping: dict[str, int]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"
