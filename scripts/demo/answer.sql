-- Answer every validation row with the model :model, greedily, into table :answer.
CREATE TABLE :answer AS
SELECT name, complete(:'model', prompt, '{"max_tokens": 24}') #>> '{choices,0,messages}' AS answer
FROM setting
WHERE validation;
