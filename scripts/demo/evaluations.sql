-- On the validation rows, as the training went on; step 0 is the untouched base.
SELECT step, round(epoch::numeric, 1) AS epoch, round(validation_loss::numeric, 3) AS validation_loss,
       round(validation_token_accuracy::numeric, 3) AS validation_token_accuracy
FROM finetune.metrics
WHERE job_id = :'job' AND validation_loss IS NOT NULL
ORDER BY step;
