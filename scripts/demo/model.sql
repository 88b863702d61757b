CREATE EXTENSION pg_finetune;
CREATE SERVER "smollm2-135m-instruct" TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
    OPTIONS (file 'SmolLM2-135M-Instruct.Q4_1.gguf');
