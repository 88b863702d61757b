-- Answer every validation row with the model :model, greedily, into table :answer.
-- The longest category has 12 tokens.
CREATE TABLE :answer AS
SELECT name, complete(:'model', prompt, '{"max_tokens": 16}') #>> '{choices,0,messages}' AS answer
FROM setting
WHERE validation;
