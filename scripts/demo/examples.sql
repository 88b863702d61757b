\pset format wrapped
\pset columns 120
SELECT prompt, completion, left(b.answer, 60) AS base, t.answer AS tuned
FROM setting
JOIN base_answer b USING (name)
JOIN tuned_answer t USING (name)
ORDER BY md5(name)
LIMIT 5;
