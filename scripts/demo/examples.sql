\x on
SELECT prompt, completion AS expected, left(replace(b.answer, E'\n', ' '), 90) AS base, t.answer AS tuned
FROM setting
JOIN base_answer b USING (name)
JOIN tuned_answer t USING (name)
ORDER BY md5(name)
LIMIT 5;
