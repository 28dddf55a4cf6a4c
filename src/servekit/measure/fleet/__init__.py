"""How many replicas a rate of requests needs, reckoned from measured records and tried in a simulation."""

from servekit.measure.fleet.model import FleetPlan, Speeds, Work, fit_speeds, most_running, plan_fleet
from servekit.measure.fleet.simulation import Simulated, simulate

__all__ = ["FleetPlan", "Simulated", "Speeds", "Work", "fit_speeds", "most_running", "plan_fleet", "simulate"]
