"""Memory and time of a run, before it is paid for: :func:`moslora.plan.plan`."""

from moslora.plan.report import Plan, plan

__all__ = ["Plan", "plan"]
