"""What all trainings share: loss, metrics, schedules, callbacks, the record of a run, fine-tuning."""
