// @ts-check
/** The words for a token that was refused, which differ by where it was shown. */

/**
 * @param {import('./tokens.mjs').Reading} reading of a token with a flaw
 * @returns {{ handshake: string, join: { code: string, text: string }, pushed: string }}
 */
export function describeFlaw({ flaw, expiredForS }) {
  switch (flaw) {
    case 'expired': {
      const text = `Token has expired ${expiredForS} seconds ago`;
      return words('Token has expired', 'InvalidJWTToken', text);
    }
    case 'incomplete': {
      const text = 'Fields `role` and `exp` are required in JWT';
      return words(text, 'InvalidJWTToken', text);
    }
    case 'forged': {
      const text = 'Failed to validate JWT signature';
      return words(text, 'JwtSignatureError', text);
    }
    case 'unsignable': {
      const text =
        'Failed to generate JWT signer, check your JWT secret or JWKS configuration';
      return words(text, 'JwtSignerError', text);
    }
    case 'invalid': {
      const text = 'Token claims are not valid';
      return words(text, 'InvalidJWTToken', text);
    }
    default: {
      const text = 'The token provided is not a valid JWT';
      return words(text, 'MalformedJWT', text);
    }
  }
}

/**
 * @param {string} handshake
 * @param {string} code
 * @param {string} text
 */
const words = (handshake, code, text) => ({ handshake, join: { code, text }, pushed: text });
