"""The pages of allauth that Docora uses, under allauth's names, and Docora's own."""

from allauth.account import views as account
from allauth.mfa.base import views as mfa
from allauth.mfa.recovery_codes import views as recovery_codes
from allauth.mfa.totp import views as totp
from allauth.mfa.webauthn import views as webauthn
from django.urls import path
from django.views.decorators.http import require_POST
from django.views.generic import RedirectView, TemplateView

from docora.sign_in import views

urlpatterns = [
    path("login/", account.login, name="account_login"),
    path("logout/", require_POST(account.logout), name="account_logout"),
    path("inactive/", account.account_inactive, name="account_inactive"),
    path("reauthenticate/", account.reauthenticate, name="account_reauthenticate"),
    path("link/<str:token>/", views.link, name="sign_in_link"),
    path("security/", mfa.index, name="mfa_index"),
    path("security/authenticate/", views.authenticate, name="mfa_authenticate"),
    path("security/reauthenticate/", mfa.reauthenticate, name="mfa_reauthenticate"),
    path("security/app/add/", totp.activate_totp, name="mfa_activate_totp"),
    path("security/app/remove/", views.own_factors(totp.deactivate_totp), name="mfa_deactivate_totp"),
    path(
        "security/recovery-codes/",
        views.own_factors(recovery_codes.view_recovery_codes),
        name="mfa_view_recovery_codes",
    ),
    path(
        "security/recovery-codes/new/",
        views.own_factors(recovery_codes.generate_recovery_codes),
        name="mfa_generate_recovery_codes",
    ),
    path("security/passkeys/", RedirectView.as_view(pattern_name="mfa_index"), name="mfa_list_webauthn"),
    path("security/passkeys/add/", webauthn.add_webauthn, name="mfa_add_webauthn"),
    path("security/passkeys/sign-in/", views.passkey_login, name="mfa_login_webauthn"),
    path(
        "security/passkeys/reauthenticate/",
        views.ReauthenticateWithPasskeyView.as_view(),
        name="mfa_reauthenticate_webauthn",
    ),
    path("security/passkeys/<int:pk>/remove/", views.own_factors(webauthn.remove_webauthn), name="mfa_remove_webauthn"),
    path("oidc/login/", views.oidc_login, name="oidc_login"),
    path("oidc/reauthenticate/", views.oidc_reauthenticate, name="oidc_reauthenticate"),
    path("<slug:provider_id>/login/callback/", views.oidc_callback, name="openid_connect_callback"),
    path(
        "cancelled/",
        TemplateView.as_view(template_name="socialaccount/login_cancelled.html"),
        name="socialaccount_login_cancelled",
    ),
]
