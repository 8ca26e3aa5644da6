"""What Ray Tune takes from the environment only."""

RAY_DEFAULTS = {
    # Seconds between two times that a study's state is saved: what a killed driver forgets. Tune's
    # own rule is at least 10.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    # Ctrl-C ends the job as in every project; Tune would return as if the study were complete.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Three files a trial that nobody reads: `metrics.jsonl` and `trials.parquet` have it all.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The console is ours; failures are told in a line.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # That a state is saved often is what was asked for.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A path relative to the working directory means the same in a trial.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
