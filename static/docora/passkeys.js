// Connects the page's form[data-passkey] with allauth's scripts. The attribute names allauth's function for the form. The button
// has the id `passkey-button` and is disabled until then. Errors are shown in `passkey-error`.
(() => {
  const form = document.querySelector("form[data-passkey]");
  const error = document.getElementById("passkey-error");
  const button = "passkey-button";

  function say(message) {
    error.textContent = message;
    error.hidden = false;
  }

  if (!window.PublicKeyCredential) {
    say("This browser doesn't support passkeys.");
    return;
  }
  document.addEventListener("allauth.error", (event) => {
    event.preventDefault(); // allauth would write it to the console
    say("The passkey wasn't used: the request was cancelled or timed out. Try again.");
  });
  window.allauth.webauthn.forms[form.dataset.passkey]({
    ids: {
      login: button,
      authenticate: button,
      add: button,
      credential: "id_credential",
      passwordless: "id_passwordless",
      data: "js_data",
    },
  });
  document.getElementById(button).disabled = false;
})();
