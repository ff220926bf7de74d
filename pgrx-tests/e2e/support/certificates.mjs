// @ts-check
/**
 * Certificates of an authority of our own, good ones and each kind of bad one, made by `openssl`
 * (Debian's Postgres depends on it) for the loopback address and thrown away with their folder.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

/**
 * `stranger`: signed by an authority that nobody names; `elsewhere`: for another host; `expired`:
 * good until yesterday; `alone`: signed by itself.
 *
 * @typedef {'good' | 'stranger' | 'elsewhere' | 'expired' | 'alone'} CertificateKind
 * @typedef {{ key: string, certificate: string }} Tls what `startSink({ tls })` takes
 */

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
const HERE = 'subjectAltName=IP:127.0.0.1,DNS:localhost';
const ELSEWHERE = 'subjectAltName=DNS:elsewhere.example';

/**
 * An authority, whose certificate is in `caFile`, readable by every user of the machine.
 */
export async function startAuthority() {
  const directory = await mkdtemp(join(tmpdir(), 'pg_outbox-ca-'));
  await chmod(directory, 0o755);
  const openssl = async (/** @type {string[]} */ ...parameters) =>
    promisify(execFile)('openssl', parameters, { cwd: directory });
  const found = async (/** @type {string} */ name) => {
    await openssl('req', '-x509', ...KEY, '-keyout', `${name}.key`, '-out', `${name}.pem`,
      '-subj', `/CN=${name}`, '-days', '2', '-addext', 'keyUsage=critical,keyCertSign');
    await chmod(join(directory, `${name}.pem`), 0o644);
  };
  await Promise.all([found('ours'), found('theirs')]);

  let serial = 0;
  return {
    caFile: join(directory, 'ours.pem'),
    /**
     * @param {CertificateKind} kind
     * @returns {Promise<Tls>}
     */
    issue: async (kind) => {
      const name = `${kind}-${(serial += 1)}`;
      const place = kind === 'elsewhere' ? ELSEWHERE : HERE;
      const files = ['-keyout', `${name}.key`, '-out'];
      const subject = ['-subj', `/CN=${kind}`];
      if (kind === 'alone') {
        await openssl('req', '-x509', ...KEY, ...files, `${name}.pem`, ...subject,
          '-days', '2', '-addext', place);
      } else {
        const signer = kind === 'stranger' ? 'theirs' : 'ours';
        await openssl('req', '-new', ...KEY, ...files, `${name}.csr`, ...subject);
        await writeFile(join(directory, `${name}.ext`), `${place}\nextendedKeyUsage=serverAuth\n`);
        await openssl('x509', '-req', '-in', `${name}.csr`, '-out', `${name}.pem`,
          '-CA', `${signer}.pem`, '-CAkey', `${signer}.key`, '-set_serial', String(serial),
          '-extfile', `${name}.ext`, '-days', kind === 'expired' ? '-1' : '2');
      }
      const text = (/** @type {string} */ end) => readFile(join(directory, name + end), 'utf8');
      return { key: await text('.key'), certificate: await text('.pem') };
    },
    close: () => rm(directory, { recursive: true, force: true }),
  };
}
