"""Schedules, losses, guidance and samplers: functions on tensors, independent of any model."""
