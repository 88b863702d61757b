-- Exact matches on the validation rows; majority always answers the commonest training category.
SELECT format('accuracy majority=%s base=%s tuned=%s',
              to_char(avg((completion = majority)::int), 'FM0.00'),
              to_char(avg((completion = btrim(b.answer, E' \n'))::int), 'FM0.00'),
              to_char(avg((completion = btrim(t.answer, E' \n'))::int), 'FM0.00'))
FROM setting
JOIN base_answer b USING (name)
JOIN tuned_answer t USING (name)
CROSS JOIN (SELECT mode() WITHIN GROUP (ORDER BY completion) AS majority
            FROM setting WHERE NOT validation) m;
