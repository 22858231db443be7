"""One table each for problems, teachers, features, baselines, suites: a row adds it everywhere."""
