"""Schedules, losses, guidance and samplers: functions on tensors that know no model."""
