-- STATUS|one line about the job :job
SELECT j.status,
       concat_ws('  ', rpad(coalesce(p.phase, j.phase), 9),
                 'step ' || coalesce(p.steps_done, j.step) || '/' || coalesce(p.steps_total, j.total_steps),
                 'loss ' || to_char(coalesce(p.training_loss, j.training_loss), 'FM990.000'),
                 to_char(coalesce(p.tokens_per_second, j.tokens_per_second), 'FM999990') || ' tokens/s',
                 'ETA ' || to_char(p.time_left, 'HH24:MI:SS'))
FROM finetune.jobs j
LEFT JOIN finetune.progress p USING (job_id)
WHERE j.job_id = :'job';
