-- What guards the ledger and the record in this database, one row each: the object, the object that it must be like, the
-- guard, and its definition in PostgreSQL's own words, or ''. Those words may differ between major versions; the guard
-- itself holds facts of the catalogs that do not. $1 lists the objects to look at; null: all that taskpass_owner has in
-- the schema public.
WITH owner AS (
    SELECT oid FROM pg_roles WHERE rolname = 'taskpass_owner'
), relations AS (
    SELECT c.*, CASE WHEN part THEN 'table events_default' ELSE object END AS same, object, part
    FROM pg_class c, LATERAL (SELECT
        CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.relname AS object,
        EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid AND inhparent = to_regclass('public.events')) AS part) o
    WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND (part OR object = ANY ($1) OR $1 IS NULL AND c.relowner = (SELECT oid FROM owner))
), functions AS (
    SELECT p.*, object FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
        LATERAL (SELECT 'function ' || CASE nspname WHEN 'public' THEN '' ELSE nspname || '.' END || proname
            || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS object) o
    WHERE nspname !~ '^(pg_|information_schema$)' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        -- A function with its owner's rights lends them to whoever may call it.
        AND (object = ANY ($1) OR nspname = 'public' AND proowner = (SELECT oid FROM owner)
            OR prosecdef AND has_function_privilege('taskpass_service', p.oid, 'EXECUTE'))
), rights AS (
    SELECT object, same, relowner AS owner, NULL::text AS of, (aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))).*
    FROM relations
    UNION ALL SELECT object, same, relowner, attname, (aclexplode(attacl)).* FROM relations JOIN pg_attribute ON attrelid = relations.oid
    UNION ALL SELECT object, object, proowner, NULL, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).* FROM functions
    UNION ALL SELECT 'schema public', 'schema public', nspowner, NULL, a.* FROM pg_namespace, aclexplode(nspacl) a
        WHERE nspname = 'public' AND a.privilege_type = 'CREATE'
), memberships AS ( -- PostgreSQL 16 knows memberships that give nothing but the right to hand them on
    SELECT roleid, member FROM pg_auth_members m
    WHERE coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true) OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)
), logins AS ( -- all that is, or can become, the service or an auditor
    SELECT oid FROM pg_roles WHERE rolname IN ('taskpass_service', 'taskpass_auditor')
    UNION SELECT member FROM memberships JOIN pg_roles r ON r.oid = roleid WHERE rolname IN ('taskpass_service', 'taskpass_auditor')
), reach AS (
    WITH RECURSIVE up AS (
        SELECT oid AS login, oid AS role FROM logins UNION SELECT up.login, m.roleid FROM up JOIN memberships m ON m.member = up.role
    ) SELECT login, r.* FROM up JOIN pg_roles r ON r.oid = up.role
), guards (object, same, guard, words) AS (
    SELECT object, same, format('owned by %s%s%s%s', pg_get_userbyid(relowner), CASE relpersistence WHEN 'p' THEN '' ELSE ', unlogged' END,
        CASE WHEN relrowsecurity THEN ', with row security' END, CASE WHEN relforcerowsecurity THEN ' forced' END), NULL FROM relations
    UNION ALL SELECT object, same, format('column %s %s%s%s%s', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' NOT NULL' END,
            CASE attidentity WHEN 'a' THEN ' ALWAYS' WHEN 'd' THEN ' BY DEFAULT' END, CASE WHEN attgenerated <> '' THEN ' GENERATED' WHEN atthasdef THEN ' DEFAULT' END),
            pg_get_expr(adbin, adrelid)
        FROM relations JOIN pg_attribute ON attrelid = relations.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attnum > 0 AND NOT attisdropped AND relkind <> 'S' AND NOT part
    UNION ALL SELECT object, same, format('constraint %s, %s%s%s%s', conname,
            CASE contype WHEN 'c' THEN 'CHECK' WHEN 'f' THEN 'FOREIGN KEY' WHEN 'p' THEN 'PRIMARY KEY' WHEN 'u' THEN 'UNIQUE' ELSE contype::text END,
            CASE WHEN NOT convalidated THEN ' NOT VALID' END, CASE WHEN condeferrable THEN ' DEFERRABLE' END,
            CASE to_jsonb(k) ->> 'conenforced' WHEN 'false' THEN ' NOT ENFORCED' END), -- known from PostgreSQL 18 on
            pg_get_constraintdef(k.oid)
        FROM relations JOIN pg_constraint k ON conrelid = relations.oid WHERE contype NOT IN ('n', 't') AND NOT part
    UNION ALL SELECT object, same, format('unique index %s%s', (SELECT i.relname FROM pg_class i WHERE i.oid = indexrelid),
            CASE WHEN NOT (indisvalid AND indisready) THEN ', invalid' END), pg_get_indexdef(indexrelid)
        FROM relations JOIN pg_index ON indrelid = relations.oid
        WHERE indisunique AND NOT part AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
    UNION ALL SELECT object, same, format('trigger %s, calls %s, of type %s, %s', tgname, tgfoid::regproc, tgtype,
            CASE tgenabled WHEN 'O' THEN 'enabled' WHEN 'D' THEN 'disabled' ELSE 'enabled for replication only or too' END), pg_get_triggerdef(t.oid)
        FROM relations JOIN pg_trigger t ON tgrelid = relations.oid WHERE NOT tgisinternal
    UNION ALL SELECT object, same, format('the foreign key %s is not enforced', conname), NULL
        FROM relations JOIN pg_trigger ON tgrelid = relations.oid JOIN pg_constraint k ON k.oid = tgconstraint WHERE tgisinternal AND tgenabled <> 'O'
    UNION ALL SELECT object, same, format('rule %s', rulename), pg_get_ruledef(r.oid) FROM relations JOIN pg_rewrite r ON ev_class = relations.oid WHERE rulename <> '_RETURN'
    UNION ALL SELECT object, same, format('policy %s', polname), NULL FROM relations JOIN pg_policy ON polrelid = relations.oid
    UNION ALL SELECT object, object, format('owned by %s, %s in %s%s%s, body %s', pg_get_userbyid(proowner), pg_get_function_result(functions.oid), lanname,
            CASE WHEN prosecdef THEN ' SECURITY DEFINER' END, ' SET ' || array_to_string(proconfig, ', '), encode(sha256(convert_to(prosrc, 'UTF8')), 'hex')), NULL
        FROM functions JOIN pg_language l ON l.oid = prolang
    UNION ALL SELECT object, same, format('%s may %s%s%s', who, privilege_type, ' of ' || of, CASE WHEN is_grantable THEN ', and grant it' END), NULL
        FROM rights, LATERAL (SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END AS who) g
        WHERE grantee <> owner AND (privilege_type <> 'SELECT' OR is_grantable OR who IN ('PUBLIC', 'taskpass_service', 'taskpass_auditor'))
    UNION ALL SELECT 'role taskpass_owner', 'role taskpass_owner', 'gives rights on what it makes later', NULL FROM pg_default_acl JOIN owner ON defaclrole = owner.oid
    UNION ALL SELECT 'role ' || rolname, 'role ' || rolname, 'may log in', NULL FROM pg_roles
        WHERE rolcanlogin AND rolname IN ('taskpass_owner', 'taskpass_service', 'taskpass_auditor')
    UNION ALL SELECT 'role ' || l.rolname, 'role ' || l.rolname, CASE WHEN reach.oid = login THEN '' ELSE 'is a member of ' || reach.rolname || ', which ' END
            || concat_ws(', ', CASE WHEN reach.rolsuper THEN 'is a superuser' END, CASE WHEN reach.rolbypassrls THEN 'bypasses row security' END,
                CASE WHEN reach.rolcreaterole THEN 'may create roles' END, CASE WHEN reach.rolreplication THEN 'may replicate' END,
                CASE reach.rolname WHEN 'taskpass_owner' THEN 'owns the record' WHEN 'pg_write_all_data' THEN 'writes everything' END,
                CASE WHEN reach.rolname IN ('pg_write_server_files', 'pg_execute_server_program') THEN 'reaches the server''s files' END), NULL
        FROM reach JOIN pg_roles l ON l.oid = login
        WHERE reach.rolsuper OR reach.rolbypassrls OR reach.rolcreaterole OR reach.rolreplication
            OR reach.rolname IN ('taskpass_owner', 'pg_write_all_data', 'pg_write_server_files', 'pg_execute_server_program')
    UNION ALL SELECT who, who, 'sets session_replication_role: triggers do not run', NULL
        FROM pg_db_role_setting, LATERAL (SELECT CASE setrole WHEN 0 THEN 'database' ELSE 'role ' || pg_get_userbyid(setrole) END AS who) s
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            AND EXISTS (SELECT FROM unnest(setconfig) c WHERE c LIKE 'session\_replication\_role=%' AND c <> 'session_replication_role=origin')
    UNION ALL SELECT 'server', 'server', 'has session_replication_role ' || role || ': triggers do not run', NULL
        FROM current_setting('session_replication_role') role WHERE role <> 'origin'
)
SELECT object, same, regexp_replace(guard, '\s+', ' ', 'g'), regexp_replace(coalesce(words, ''), '\s+', ' ', 'g') FROM guards ORDER BY 1, 3, 4
