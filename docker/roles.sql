-- The first start of an empty postgres volume runs this as the superuser: hpo's containers get a role that owns their
-- database and may do nothing to the server around it.
\getenv password HPO_DATABASE_PASSWORD
CREATE ROLE hpo LOGIN PASSWORD :'password';
CREATE DATABASE hpo OWNER hpo;
