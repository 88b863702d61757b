-- What counting words achieves on the same split: multinomial naive Bayes with
-- Laplace smoothing, over the words of the prompt.  One value: the accuracy.
WITH word AS (
    SELECT name, completion, validation, w
    FROM setting, regexp_split_to_table(lower(prompt), '[^a-z0-9]+') AS w
    WHERE w <> ''
), vocabulary AS (
    SELECT count(DISTINCT w) AS size FROM word WHERE NOT validation
), class AS (
    SELECT completion, ln(count(DISTINCT name)) AS prior, count(w) AS words
    FROM word WHERE NOT validation GROUP BY completion
), seen AS (
    SELECT completion, w, count(*) AS n FROM word WHERE NOT validation GROUP BY completion, w
), score AS (
    SELECT v.name, v.completion AS truth, c.completion AS guess,
           c.prior + sum(ln((coalesce(s.n, 0) + 1.0) / (c.words + vocabulary.size))) AS value
    FROM word v
    CROSS JOIN class c
    CROSS JOIN vocabulary
    LEFT JOIN seen s ON s.completion = c.completion AND s.w = v.w
    WHERE v.validation
    GROUP BY v.name, v.completion, c.completion, c.prior
), best AS (
    SELECT DISTINCT ON (name) name, truth, guess FROM score ORDER BY name, value DESC, guess
)
SELECT to_char(avg((truth = guess)::int), 'FM0.00') FROM best;
