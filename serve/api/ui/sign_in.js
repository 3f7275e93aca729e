// For those who are not known yet: a key, a password, or the provider's own page.
import { html, useEffect, useRef, useState } from "./preact.js";
import { BASE, call, get } from "./api.js";
import { start } from "./live.js";
import { Dialog, ErrorBox } from "./parts.js";
import { update, use } from "./store.js";
import { t, useLang } from "./texts.js";

const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

// `fields` are [name, label, type, autocomplete]; `header` makes the credentials of their values.
function Credentials({ fields, hint, header }) {
  const [values, setValues] = useState({}), [error, setError] = useState(null), [busy, setBusy] = useState(false);
  const go = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await call("POST", "/v1/session", undefined, { Authorization: header(values) });
      update({ signInError: null });
      await start();
    } catch (failure) { setError(failure.error); } finally { setBusy(false); }
  };
  return html`<form onSubmit=${go}>
    ${fields.map(([name, label, type, autocomplete]) => html`<label class="field" key=${name}>${label}<input type=${type} value=${values[name] ?? ""} autocomplete=${autocomplete}
      onInput=${(event) => setValues({ ...values, [name]: event.target.value })} /></label>`)}
    <p class="hint">${hint}</p>
    ${error && html`<${ErrorBox} error=${error} />`}
    <div class="row end"><button class="primary" disabled=${busy || fields.some(([name]) => !values[name]?.trim())}>${t("sign_in")}</button></div>
  </form>`;
}

export function SignIn() {
  useLang();
  const error = use((s) => s.signInError), [methods, setMethods] = useState(null), place = useRef();
  useEffect(() => { get("/auth/methods").then(({ data }) => setMethods(data), () => setMethods([{ type: "key" }])); }, []);
  useEffect(() => { if (methods) place.current.querySelector("a, input")?.focus(); }, [methods]);
  const provider = methods?.find((one) => one.type === "oidc"), others = (methods ?? []).filter((one) => one !== provider);
  const forms = {
    key: html`<${Credentials} fields=${[["key", t("key"), "password", "current-password"]]} hint=${t("sign_in_hint")} header=${({ key }) => `Bearer ${key.trim()}`} />`,
    password: html`<${Credentials} fields=${[["user", t("user"), "text", "username"], ["password", t("password"), "password", "current-password"]]} hint=${t("password_hint")}
      header=${({ user, password }) => `Basic ${base64(`${user}:${password}`)}`} />`,
  };
  const first = provider ? null : others.find((one) => one.type === "password") ?? others[0];
  return html`<${Dialog} title=${t("sign_in")}><div class="sign-in" ref=${place}>
    ${error && html`<${ErrorBox} error=${error} />`}
    ${provider && html`<a class="button primary" href=${BASE + provider.path.slice(1)}>${t("sign_in_with", provider.label)}</a>`}
    ${first && forms[first.type]}
    ${others.filter((one) => one !== first).map((one) => html`<details key=${one.type}><summary>${t(`or_${one.type}`)}</summary>${forms[one.type]}</details>`)}
  </div></${Dialog}>`;
}
