SELECT finetune('CREATE', 'settings', 'smollm2-135m-instruct',
    'SELECT prompt, completion FROM setting WHERE NOT validation ORDER BY name',
    'SELECT prompt, completion FROM setting WHERE validation ORDER BY name',
    '{"max_epochs": 6, "learning_rate": 1e-3, "batch_size": 512, "n_evals": 2}');
