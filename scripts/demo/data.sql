-- The server's own settings: which category does a setting belong to?
-- A hash of the name decides which rows are for training and which for validation.
CREATE TABLE setting AS
SELECT name, name || ': ' || short_desc AS prompt, category AS completion,
       hashtext(name) % 5 = 0 AS validation
FROM pg_settings
WHERE name NOT LIKE '%.%';
