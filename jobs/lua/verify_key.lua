-- Looks an API key up by its digest. ARGV: prefix, digest, how old the last use may be unnoted, ms
-- Returns the key's hash as a flat list, empty if it is unknown, revoked or expired
return key_in_force(ARGV[2], tonumber(ARGV[3]))
