SELECT finetune('CREATE', 'settings', 'smollm2-135m-instruct',
    'SELECT prompt, completion FROM setting WHERE NOT validation ORDER BY name',
    'SELECT prompt, completion FROM setting WHERE validation ORDER BY name',
    '{"max_epochs": 4, "learning_rate": 1e-3}');
